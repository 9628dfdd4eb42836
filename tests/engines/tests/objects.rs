//! What Kubernetes gives a pod: volumes that change, files, memory, rights. Each claim holds for runc too, unless it says why not.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, Volume, bind, config, resources,
    runtime::{
        Int64Value, KeyValue, LinuxContainerResources, SecurityProfile,
        security_profile::ProfileType,
    },
    security,
};
use kata_guest_tests::ceiling;

fn on_both(claim: impl Fn(&Containerd, Handler)) {
    let Some(engine) = Containerd::start() else { return };
    for handler in [RUNC, KATA] {
        claim(&engine, handler);
    }
}

/// Waits for a log to have a line with this in it; the only other way is to poll, and nobody tells of a log.
fn until_logged(container: &Container<'_>, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !container.log_lines().iter().any(|line| line.contains(wanted)) {
        assert!(Instant::now() < deadline, "no {wanted:?}: {:?}", container.log_lines());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The kinds of volume that a kubelet renews while a pod uses them.
const RENEWED: [&str; 4] = ["configmap", "secret", "projected", "downward-api"];

/// Says what happens in `/mnt`, as programs do that reload their configuration.
const WATCH: &str = r"
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, b'/mnt', 0x80)
print('watching', flush=True)
while True:
    events = os.read(fd, 4096)
    while events:
        length = struct.unpack_from('I', events, 12)[0]
        print('moved', events[16:16 + length].rstrip(bytes(1)).decode(), flush=True)
        events = events[16 + length:]
";

#[test]
fn volumes_that_change_tell_of_it_within_a_second() {
    let Some(debian) = env::var_os("KATA_TEST_ROOT_DEBIAN").map(PathBuf::from) else {
        println!("SKIP KATA_TEST_ROOT_DEBIAN is not set; run cargo xtask test");
        return;
    };
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        for kind in RENEWED {
            let mut volume = Volume::new(kind);
            volume.write(&[("key", "one"), ("deep/er", "x")]);
            // What a kubelet makes where the pod has another volume mounted in this one.
            fs::create_dir_all(volume.path().join("nested/further")).unwrap();
            let nested = tempfile::tempdir().unwrap();
            fs::set_permissions(volume.path().join("..data/key"), PermissionsExt::from_mode(0o440))
                .unwrap();
            let mut config = pod.script("exec chroot /debian python3 -c \"$WATCH\"");
            config.envs =
                vec![KeyValue { key: "WATCH".into(), value: WATCH.into(), ..Default::default() }];
            config.mounts = vec![
                bind(&debian, "/debian", true),
                volume.mount("/debian/mnt"),
                bind(nested.path(), "/debian/mnt/nested/further", false),
            ];
            let container = pod.start(config);
            container.output("echo x > /debian/mnt/nested/further/file");
            assert_eq!(container.output("cd /debian/mnt; cat key deep/er"), "onex");
            assert_eq!(container.output("stat -Lc %a /debian/mnt/key"), "440");
            assert_ne!(container.exec(&["touch", "/debian/mnt/key"]).exit_code, 0);
            until_logged(&container, "watching");
            let started = Instant::now();
            volume.write(&[("key", "two"), ("other", "y")]);
            until_logged(&container, " moved ..data");
            let took = started.elapsed();
            // What tells of it is what brings it.
            assert_eq!(container.output("cd /debian/mnt; cat key other"), "twoy");
            assert!(took <= ceiling(Duration::from_secs(1)), "{kind}: {took:?}");
            container.output("while [ -e /debian/mnt/deep ]; do sleep 0.05; done");
            assert_eq!(container.output("cat /debian/mnt/nested/further/file"), "x");
            container.stop(0);
            container.remove();
        }
        pod.remove();
    });
}

#[test]
fn a_change_is_seen_whole_or_not_at_all() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut volume = Volume::new("configmap");
        volume.write(&[("a", "0"), ("b", "0")]);
        // What is read by way of one look at the link is of one generation, or was gone meanwhile.
        let mut reader = pod.script(
            "while :; do d=$(readlink /v/..data); a=$(cat /v/$d/a) && b=$(cat /v/$d/b) || continue; \
             [ \"$a\" = \"$b\" ] || echo torn; [ \"$a\" = last ] && echo end && exit; done 2>/dev/null",
        );
        reader.mounts = vec![volume.mount("/v")];
        let reader = pod.start(reader);
        for generation in 1..=50 {
            let text = generation.to_string();
            volume.write(&[("a", &text), ("b", &text)]);
        }
        volume.write(&[("a", "last"), ("b", "last")]);
        reader.ended();
        assert_eq!(reader.log_lines(), ["stdout F end"]);
        pod.remove();
    });
}

#[test]
fn a_volume_that_is_too_large_to_copy_is_shared_and_changes() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut volume = Volume::new("configmap");
        let large = "x".repeat(4 << 20);
        volume.write(&[("large", &large), ("key", "one")]);
        let mut config = pod.script("exec sleep 1000");
        config.mounts = vec![volume.mount("/v")];
        let container = pod.start(config);
        assert_eq!(container.output("wc -c < /v/large"), large.len().to_string());
        volume.write(&[("large", &large), ("key", "two")]);
        container.output("until [ $(cat /v/key) = two ]; do sleep 0.05; done");
        pod.remove();
    });
}

#[test]
fn directories_of_a_pod_are_shared_and_outlive_its_containers() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let disk = tempfile::tempdir().unwrap();
        let memory = Tmpfs::new();
        let message = disk.path().join("message");
        fs::write(&message, "").unwrap();
        let hosts = disk.path().join("hosts");
        fs::write(&hosts, "10.0.0.9 friend\n").unwrap();
        let sub = disk.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("file"), "below").unwrap();
        let with_all = |script: &str| {
            let mut config = pod.script(script);
            config.mounts = vec![
                bind(disk.path(), "/disk", false),
                bind(memory.0.path(), "/memory", false),
                bind(&message, "/dev/termination-log", false),
                bind(&hosts, "/etc/hosts", false),
                bind(&sub, "/sub-path", true),
                bind(&sub.join("file"), "/sub-file", false),
            ];
            pod.start(config)
        };
        let one = with_all("echo kept > /disk/one; echo kept > /memory/one; exec sleep 1000");
        let other = with_all("exec sleep 1000");
        other.output("until [ -s /disk/one ] && [ -s /memory/one ]; do sleep 0.05; done");
        assert_eq!(other.output("cat /sub-path/file /sub-file"), "belowbelow");
        assert_ne!(other.exec(&["touch", "/sub-path/file"]).exit_code, 0);
        assert!(other.output("cat /etc/hosts").contains("10.0.0.9 friend"));
        // The size that a kubelet has given it is its end.
        let full = other.exec(&["dd", "if=/dev/zero", "of=/memory/full", "bs=1M", "count=9"]);
        assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{full}");
        other.output("rm /memory/full");
        one.stop(0);
        one.remove();
        let again = with_all("cat /disk/one /memory/one; echo why > /dev/termination-log; exit 3");
        assert_eq!(again.ended().exit_code, 3);
        assert_eq!(again.log_lines(), ["stdout F kept", "stdout F kept"]);
        assert_eq!(fs::read_to_string(&message).unwrap(), "why\n");
        pod.remove();
    });
}

/// A tmpfs of 8 MiB on the host, as a kubelet makes for an emptyDir in memory with a limit.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "kata-test"]).arg(directory.path());
        assert!(mount.status().unwrap().success());
        Self(directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[test]
fn groups_of_a_pod_own_what_is_made_in_its_volumes() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let volume = tempfile::tempdir().unwrap();
        // What a kubelet does for fsGroup: 2000.
        chown(volume.path(), None, Some(2000)).unwrap();
        fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o2775)).unwrap();
        let mut config = pod.script("exec sleep 1000");
        config.mounts = vec![bind(volume.path(), "/volume", false)];
        let context = security(&mut config);
        context.run_as_user = Some(number(1000)).into();
        context.run_as_group = Some(number(1000)).into();
        context.supplemental_groups = vec![2000];
        let member = pod.start(config.clone());
        member.output("umask 0002; echo x > /volume/file; mkdir /volume/directory");
        let owner = |name: &str| {
            let file = fs::metadata(volume.path().join(name)).unwrap();
            (file.uid(), file.gid(), file.mode() & 0o7777)
        };
        assert_eq!(owner("file"), (1000, 2000, 0o664));
        assert_eq!(owner("directory"), (1000, 2000, 0o2775));
        security(&mut config).supplemental_groups = vec![];
        config.metadata.as_mut().unwrap().name += "x";
        let stranger = pod.start(config);
        assert_ne!(stranger.exec(&["touch", "/volume/other"]).exit_code, 0);
        pod.remove();
    });
}

fn number(value: i64) -> Int64Value {
    Int64Value { value, ..Default::default() }
}

#[test]
fn system_calls_are_filtered_as_asked() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let with = |profile: ProfileType, path: &Path| {
            let mut config = pod.script("exec sleep 1000");
            let profile = SecurityProfile {
                profile_type: profile.into(),
                localhost_ref: path.display().to_string(),
                ..Default::default()
            };
            security(&mut config).seccomp = Some(profile).into();
            pod.start(config)
        };
        // Below runc those of the machine that the tests run on count, too.
        let filters = |container: &Container<'_>| -> u32 {
            let count = container.output("awk '/^Seccomp_filters/ {print $2}' /proc/self/status");
            count.parse().unwrap()
        };
        let default = with(ProfileType::RuntimeDefault, Path::new(""));
        assert_ne!(default.exec(&["unshare", "-m", "true"]).exit_code, 0);
        let free = with(ProfileType::Unconfined, Path::new(""));
        assert!(filters(&default) > filters(&free));
        let file = engine.file(&format!("{}.json", handler.0));
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
            [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
        fs::write(&file, profile).unwrap();
        let own = with(ProfileType::Localhost, &file);
        let refused = own.exec(&["mkdir", "/x"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("not supported"), "{refused}");
        pod.remove();
    });
}

#[test]
fn shared_memory_has_the_size_that_engines_give_it() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        assert_eq!(container.output("df -k /dev/shm | awk 'NR==2 {print $2}'"), "65536");
        pod.remove();
    });
}

/// On runc this would be the host.
#[test]
fn a_privileged_container_is_so_in_its_guest_alone() {
    let Some(engine) = Containerd::start() else { return };
    let mut config = config(&engine);
    let context = &mut config.linux.as_mut().unwrap().security_context;
    context.mut_or_insert_default().privileged = true;
    let pod = Pod::run_with(&engine, KATA, config).unwrap();
    let mut container = pod.script("exec sleep 1000");
    security(&mut container).privileged = true;
    let container = pod.start(container);
    let parameter = "/proc/sys/kernel/panic";
    let before = fs::read_to_string(parameter).unwrap();
    container.output(&format!("echo 77 > {parameter}; mkdir /m; mount -t tmpfs none /m"));
    assert_eq!(container.output(&format!("cat {parameter}")), "77");
    assert_eq!(fs::read_to_string(parameter).unwrap(), before);
    assert_eq!(container.output("ls /dev/vd* /dev/sd* /dev/nvme* 2>/dev/null | wc -l"), "0");
    pod.remove();
}

#[test]
fn probes_have_their_time_and_hooks_their_turn() {
    on_both(|engine, handler| {
        let pod = Pod::run(engine, handler);
        let mut config =
            pod.script("trap 'echo term; exit 0' TERM; echo up; while :; do sleep 0.1; done");
        resources(&mut config).memory_limit_in_bytes = 64 << 20;
        let container = pod.start(config);
        until_logged(&container, "up");
        // A probe that hangs is ended, and the next one is answered.
        let hung = container.try_exec(&["sleep", "1000"], Duration::from_secs(1));
        assert_eq!(hung.unwrap_err().code, 4);
        assert_eq!(container.exec(&["true"]).exit_code, 0);
        assert_eq!(container.exec(&["false"]).exit_code, 1);
        // A preStop hook is an exec before the stop; what it says to process 1's output is in the log before the end.
        container.output("echo stopping > /proc/1/fd/1");
        container.stop(30);
        assert_eq!(container.ended().exit_code, 0);
        assert_eq!(container.log_lines(), ["stdout F up", "stdout F stopping", "stdout F term"]);
        pod.remove();
    });
}

/// runc has no VM to be of any size.
#[test]
fn a_vm_is_as_large_as_its_pod_and_takes_a_limit_that_was_changed_since() {
    let Some(engine) = Containerd::start() else { return };
    let mut told = config(&engine);
    let all = LinuxContainerResources {
        memory_limit_in_bytes: 320 << 20,
        cpu_quota: 150_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    told.linux.as_mut().unwrap().resources = Some(all).into();
    let pod = Pod::run_with(&engine, KATA, told).unwrap();
    let with_limit = |mib: i64| {
        let mut config = pod.script("exec sleep 1000");
        resources(&mut config).memory_limit_in_bytes = mib << 20;
        config
    };
    let container = pod.start(with_limit(320));
    let kib: u64 = container.output("awk '/MemTotal/ {print $2}' /proc/meminfo").parse().unwrap();
    // All that it was promised, and what the kernel takes for itself, but not twice as much.
    assert!((320 << 10..512 << 10).contains(&kib), "{kib} KiB");
    assert_eq!(container.output("grep -c ^processor /proc/cpuinfo"), "2");
    // Of a container that was down when its limit was changed no update tells.
    let larger = pod.create(with_limit(1024)).unwrap();
    let started = larger.start();
    assert!(started.is_ok(), "a limit beyond the sum that was told: {started:?}");
    assert_eq!(larger.output("cat /sys/fs/cgroup/memory.max"), (1024 << 20).to_string());
    assert_eq!(container.output("echo still"), "still");
    pod.remove();
}

/// What a kubelet gives each container without processors of its own when it hands them out. runc's containers see the host's.
#[test]
fn a_list_of_processors_brings_up_no_more_than_shares_ask_for() {
    let Some(engine) = Containerd::start() else { return };
    let host = std::thread::available_parallelism().unwrap().get();
    if host < 2 {
        return println!("SKIP: a list of processors says nothing on a host with one");
    }
    let pod = Pod::run(&engine, KATA);
    let on = |shares: i64| {
        let mut config = pod.script("exec sleep 1000");
        let asked = resources(&mut config);
        (asked.cpuset_cpus, asked.cpu_shares) = ("0-1".into(), shares);
        pod.start(config).output("grep -c ^processor /proc/cpuinfo")
    };
    assert_eq!(on(2), "1");
    // The containers run beside each other.
    assert_eq!(on(512), "1");
    assert_eq!(on(1024), "2");
    pod.remove();
}
