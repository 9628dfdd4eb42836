//! What the validation programs of the OCI runtime-tools ask, in words of our own: each claim holds on runc, too.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use kata_guest_tests::{
    Bundle, Container, Kata, Output, busybox, namespace, run, run_bundle, unique,
};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

/// A bundle as the suite makes it: the root is the bundle itself, and the configuration is in sight of the container.
struct Case {
    bundle: Bundle,
}

impl Case {
    fn new(kata: &Kata, script: &str) -> Option<Self> {
        let mut bundle = Bundle::new(kata, busybox()?, &["sh", "-c", script]);
        let config = &mut bundle.config;
        let all = config["process"]["capabilities"]["bounding"].clone();
        for set in ["permitted", "effective", "inheritable", "ambient"] {
            config["process"]["capabilities"][set] = all.clone();
        }
        config["hostname"] = json!("mrsdalloway");
        config["process"]["noNewPrivileges"] = json!(false);
        config["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}]);
        let plain = |list: &Value, name: &str, word: &str| -> Value {
            list.as_array().unwrap().iter().filter(|it| it[name] != word).cloned().collect()
        };
        config["mounts"] = plain(&config["mounts"], "type", "cgroup");
        config["linux"]["namespaces"] = plain(&config["linux"]["namespaces"], "type", "cgroup");
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        Some(Self { bundle })
    }

    fn file(&self, path: &str) -> std::path::PathBuf {
        self.bundle.root().file(path)
    }

    fn run(&self, runtime: &Kata, id: &str) -> Output {
        self.bundle.write();
        let id = unique(id);
        run(runtime.command(&["run", "--bundle", self.bundle.path(), &id]), b"")
    }
}

/// Runs a script on runc and on Kata; what it prints must be this, and it must print the same on both.
fn says(id: &str, script: &str, expected: &str, prepare: impl Fn(&mut Case)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(mut case) = Case::new(&kata, script) else { return };
        prepare(&mut case);
        let output = case.run(runtime, id);
        let said = (output.code, output.stdout());
        assert_eq!(said, (0, expected.to_owned()), "{:?}: {}", runtime.program(), output.stderr());
    }
}

#[test]
fn devices_links_and_mounts_of_every_container_are_there() {
    let script = "
for link in fd stdin stdout stderr; do echo $link $(readlink /dev/$link); done
for node in null zero full random urandom tty ptmx; do test -c /dev/$node && echo $node; done
while read id parent device root place options rest; do
    set -- ${rest#*- }
    case $place in /proc|/dev|/dev/pts|/dev/shm|/dev/mqueue|/sys) echo $place $1 $2;; esac
done </proc/self/mountinfo
hostname; ulimit -n; ulimit -Hn
grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
    let expected = "fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\n\
        stderr /proc/self/fd/2\nnull\nzero\nfull\nrandom\nurandom\ntty\nptmx\n/proc proc proc\n\
        /dev tmpfs tmpfs\n/dev/pts devpts devpts\n/dev/shm tmpfs shm\n/dev/mqueue mqueue mqueue\n\
        /sys sysfs sysfs\nmrsdalloway\n1024\n1024\nCapInh:\t00000000a80425fb\n\
        CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n\
        CapAmb:\t00000000a80425fb\nNoNewPrivs:\t0\n";
    says("suite-default", script, expected, |_| ());
}

#[test]
fn a_bundle_can_be_its_own_root() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(case) = Case::new(&kata, "cat /config.json && pwd") else { return };
        let mut config = case.bundle.config.clone();
        config["root"]["path"] = json!(".");
        config["process"]["cwd"] = json!("/test");
        fs::create_dir(case.file("/test")).unwrap();
        fs::set_permissions(case.file("/test"), PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(case.file("/config.json"), config.to_string()).unwrap();
        let id = unique("suite-root");
        let root = case.bundle.root().path();
        let output = run(runtime.command(&["run", "--bundle", root, &id]), b"");
        assert_eq!(output.stdout(), format!("{config}/test\n"), "{}", output.stderr());
    }
}

#[test]
fn a_working_directory_is_made_even_where_nothing_can_be_written() {
    says(
        "suite-cwd",
        "pwd; touch here 2>/dev/null || echo read-only",
        "/not/there\nread-only\n",
        |case| {
            case.bundle.config["root"]["readonly"] = json!(true);
            case.bundle.config["process"]["cwd"] = json!("/not/there");
        },
    );
}

/// Puts files, directories and nodes where paths are masked or protected.
fn furnish(case: &Case) {
    fs::create_dir_all(case.file("/top/sub")).unwrap();
    fs::create_dir(case.file("/side")).unwrap();
    for path in ["/file", "/side/file", "/top/file", "/top/sub/file"] {
        fs::write(case.file(path), "secrets").unwrap();
    }
    let nodes = [
        ("block", FileType::BlockDevice),
        ("char", FileType::CharacterDevice),
        ("fifo", FileType::Fifo),
    ];
    for (name, kind) in nodes {
        mknodat(CWD, case.file(name), kind, Mode::from_raw_mode(0o666), 0).unwrap();
    }
}

#[test]
fn masked_paths_can_not_be_read_whatever_they_are() {
    let script = "cat /file; ls /top /top/sub /top/file 2>&1; cat /block /char /fifo;
        ls /side; touch /top/new /side/new 2>&1; echo end";
    let expected = "ls: /top/sub: No such file or directory\n\
        ls: /top/file: No such file or directory\n/top:\n\
        touch: /top/new: Read-only file system\ntouch: /side/new: Read-only file system\nend\n";
    says("suite-masked", script, expected, |case| {
        furnish(case);
        case.bundle.config["linux"]["maskedPaths"] = json!([
            "/top",
            "/side",
            "/file",
            "/top/sub",
            "/top/file",
            "/top/sub/file",
            "/block",
            "/char",
            "/fifo",
            "/not/there"
        ]);
    });
}

#[test]
fn protected_paths_can_not_be_written_whatever_they_are() {
    let script = "
for place in /top /top/sub; do touch $place/new 2>/dev/null || echo $place; done
for file in /file /top/file /top/sub/file; do echo x 2>/dev/null >>$file || echo $file; done
grep -cE ' /(block|char|fifo) ro' /proc/self/mountinfo; touch /writable && echo end";
    let expected = "/top\n/top/sub\n/file\n/top/file\n/top/sub/file\n3\nend\n";
    says("suite-protected", script, expected, |case| {
        furnish(case);
        case.bundle.config["linux"]["readonlyPaths"] = json!([
            "/top",
            "/file",
            "/top/sub",
            "/top/file",
            "/top/sub/file",
            "/block",
            "/char",
            "/fifo",
            "/not/there"
        ]);
    });
}

#[test]
fn a_relative_path_to_mask_or_protect_is_an_error() {
    let Some(kata) = Kata::installed() else { return };
    for name in ["maskedPaths", "readonlyPaths"] {
        let Some(mut case) = Case::new(&kata, "true") else { return };
        case.bundle.config["linux"][name] = json!(["relative"]);
        case.run(&kata, "suite-relative").assert_one_line(&[name, "must be an absolute path"]);
    }
}

#[test]
fn nodes_of_a_specification_are_made() {
    let script = "stat -c '%n %A %u %g %t:%T' /dev/test1 /dev/test2 /dev/test3";
    let expected = "/dev/test1 crw-rw-rw- 0 0 a:29a\n/dev/test2 brw-r--r-- 1 2 8:29a\n\
        /dev/test3 prw------- 0 0 0:0\n";
    says("suite-devices", script, expected, |case| {
        case.bundle.config["linux"]["devices"] = json!([
            {"path": "/dev/test1", "type": "c", "major": 10, "minor": 666, "fileMode": 0o666, "uid": 0, "gid": 0},
            {"path": "/dev/test2", "type": "b", "major": 8, "minor": 666, "fileMode": 0o644, "uid": 1, "gid": 2},
            {"path": "/dev/test3", "type": "p", "fileMode": 0o600, "uid": 0, "gid": 0},
        ]);
    });
}

#[test]
fn without_a_mount_on_dev_the_nodes_are_in_the_root_every_time() {
    let Some(kata) = Kata::installed() else { return };
    let script = "echo x >/dev/null; head -c 3 /dev/zero | wc -c; test -c /dev/mine && ls -l /dev/fd | wc -l";
    for runtime in [&Kata::oracle(), &kata] {
        let Some(mut case) = Case::new(&kata, script) else { return };
        case.bundle.config["mounts"] =
            json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
        case.bundle.config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
        case.bundle.config["linux"]["devices"] =
            json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 7, "fileMode": 0o600}]);
        // Runc 1.3 follows the links that its first run has left there.
        let once = runtime.is_oracle() && runtime.version() >= (1, 3);
        for _ in 0..if once { 1 } else { 2 } {
            let output = case.run(runtime, "suite-dev");
            assert_eq!(output.stdout(), "3\n1\n", "{:?}: {}", runtime.program(), output.stderr());
        }
    }
}

/// As the specification has it, and newer versions of runc.
#[test]
fn a_device_in_the_place_of_something_else_is_an_error() {
    let Some(kata) = Kata::installed() else { return };
    for (place, words) in [
        ("/same", None),
        ("/other", Some("c 1:5 is there instead of c 1:3")),
        ("/file", Some("a file is there instead of c 1:3")),
    ] {
        let Some(mut case) = Case::new(&kata, "echo ran") else { return };
        fs::write(case.file("/file"), "secrets").unwrap();
        for (name, node) in [("/same", makedev(1, 3)), ("/other", makedev(1, 5))] {
            mknodat(CWD, case.file(name), FileType::CharacterDevice, Mode::RUSR, node).unwrap();
        }
        case.bundle.config["linux"]["devices"] =
            json!([{"path": place, "type": "c", "major": 1, "minor": 3}]);
        let output = case.run(&kata, "suite-place");
        match words {
            Some(words) => output.assert_one_line(&[place, words]),
            None => assert_eq!(output.stdout(), "ran\n", "{}", output.stderr()),
        }
    }
}

/// Whether a mount below the root shows in a copy of the root that was made before, and whether such a copy can be made.
const PROPAGATION: &str = "
mkdir /copy /source /place; touch /source/file
mount --rbind / /copy 2>/dev/null || { echo unbindable; exit; }
mount --bind /source /place
test -e /copy/place/file && echo shared || echo private";

fn propagates(word: &str, expected: &str) {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut case) = Case::new(&kata, PROPAGATION) else { return };
    let config = &mut case.bundle.config;
    config["linux"]["rootfsPropagation"] = json!(word);
    for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        let names = config["process"]["capabilities"][set].as_array_mut().unwrap();
        names.push(json!("CAP_SYS_ADMIN"));
    }
    config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let output = case.run(&kata, &format!("suite-{word}"));
    assert_eq!(output.stdout(), format!("{expected}\n"), "{word}: {}", output.stderr());
}

#[test]
fn a_shared_root_propagates_mounts() {
    propagates("shared", "shared");
}

#[test]
fn a_private_or_slave_root_does_not() {
    propagates("private", "private");
    propagates("slave", "private");
}

#[test]
fn an_unbindable_root_can_not_be_bound() {
    propagates("unbindable", "unbindable");
}

#[test]
fn a_user_namespace_has_its_maps_on_a_root_that_is_not_its_own() {
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; stat -c %u /bin/busybox";
    let expected = " 0 1000 3200\n 0 2000 3200\n65534\n";
    says("suite-maps", script, expected, |case| {
        // The suite's is an archive, which everybody may enter.
        fs::set_permissions(case.file("/"), PermissionsExt::from_mode(0o755)).unwrap();
        let linux = &mut case.bundle.config["linux"];
        linux["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 3200}]);
        linux["gidMappings"] = json!([{"containerID": 0, "hostID": 2000, "size": 3200}]);
        linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
}

#[test]
fn annotations_and_properties_that_nobody_knows_are_no_error() {
    says("suite-unknown", "echo runs", "runs\n", |case| {
        case.bundle.config["annotations"] = json!({"org.3f2a": ""});
        case.bundle.config["unknown"] = json!("unknown");
        case.bundle.config["ociVersion"] = json!("1.0.99-dev");
    });
}

#[test]
fn whoever_stands_for_a_container_is_in_namespaces_of_its_own() {
    let Some(kata) = Kata::installed() else { return };
    let ours = i32::try_from(std::process::id()).unwrap();
    for runtime in [&Kata::oracle(), &kata] {
        let Some(case) = Case::new(&kata, "true") else { return };
        case.bundle.write();
        let container = Container::create(runtime, &case.bundle, "suite-nopath");
        for kind in ["ipc", "mnt", "net", "pid", "uts"] {
            let same = namespace(container.pid, kind) == namespace(ours, kind);
            assert!(!same, "{kind} on {:?}", runtime.program());
        }
    }
}

#[test]
fn what_becomes_of_config_json_after_create_has_no_effect() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let script = "cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj";
        let Some(mut case) = Case::new(&kata, script) else { return };
        case.bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        case.bundle.config["process"]["oomScoreAdj"] = json!(100);
        case.bundle.config["linux"]["rootfsPropagation"] = json!("shared");
        case.bundle.write();
        let container = Container::create(runtime, &case.bundle, "suite-updates");
        case.bundle.config = json!({"ociVersion": "1.0.0"});
        case.bundle.write();
        container.must("start");
        assert_eq!(container.stdout.until_end(), "1\n100\n", "{:?}", runtime.program());
        assert_eq!(container.wait().0, 0);
        container.must("delete");
    }
}

#[test]
fn a_call_that_a_filter_names_fails_as_it_says() {
    says(
        "suite-seccomp",
        "chmod 1 /tmp 2>&1; echo $?",
        "chmod: /tmp: Operation not permitted\n1\n",
        |case| {
            case.bundle.config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}],
            });
        },
    );
}

#[test]
fn a_tmpfs_has_the_options_that_it_was_given() {
    let script = "grep ' /tmp ' /proc/self/mountinfo | cut -d' ' -f6 | tr , '\\n' | sort | tr '\\n' ' '; stat -c %a /tmp";
    says("suite-mounts", script, "nosuid rw 755\n", |case| {
        fs::create_dir_all(case.file("/tmp")).unwrap();
        fs::set_permissions(case.file("/tmp"), PermissionsExt::from_mode(0o755)).unwrap();
        let options = ["nosuid", "strictatime", "mode=755", "size=1k"];
        let mount =
            json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": options});
        case.bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    });
}

#[test]
fn a_masked_link_covers_what_it_leads_to_inside() {
    let Some(kata) = Kata::installed() else { return };
    let Some(mut case) = Case::new(&kata, "cat /file; echo end") else { return };
    furnish(&case);
    symlink("../../../file", case.file("/link")).unwrap();
    symlink("../loop", case.file("/loop")).unwrap();
    case.bundle.config["linux"]["maskedPaths"] = json!(["/link", "/loop"]);
    let output = case.run(&kata, "suite-link");
    assert_eq!(output.stdout(), "end\n", "{}", output.stderr());
    assert!(Path::new(&case.file("/file")).exists());
}

#[test]
fn there_may_be_more_volumes_than_one_packet_carries_descriptors() {
    const VOLUMES: usize = 300;
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let sources = tempfile::tempdir().unwrap();
    let bundle =
        Bundle::new(&kata, root, &["sh", "-c", "cat /many/*/number | sort -n | uniq | wc -l"]);
    let output = run_bundle(&kata, bundle, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for number in 0..VOLUMES {
            let source = sources.path().join(number.to_string());
            fs::create_dir(&source).unwrap();
            fs::write(source.join("number"), format!("{number}\n")).unwrap();
            let place = format!("/many/{number}");
            mounts.push(json!({"type": "bind", "source": source, "destination": place, "options": ["rbind"]}));
        }
    });
    assert_eq!(output.stdout().trim(), VOLUMES.to_string(), "{}", output.stderr());
}

#[test]
fn a_read_only_dev_has_in_it_what_the_spec_mounts_there() {
    let script = "touch /dev/new 2>/dev/null || echo read-only; touch /dev/shm/new && test -c /dev/null && echo there";
    says("suite-ro-dev", script, "read-only\nthere\n", |case| {
        for mount in case.bundle.config["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev" {
                mount["options"].as_array_mut().unwrap().push(json!("ro"));
            }
        }
    });
}

#[test]
fn a_link_in_place_of_proc_is_no_mount_point() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(case) = Case::new(&kata, "true") else { return };
        fs::remove_dir(case.file("/proc")).unwrap();
        symlink("/tmp", case.file("/proc")).unwrap();
        let refused = case.run(runtime, "suite-proc-link");
        assert_eq!(refused.code, 1, "{:?}: {}", runtime.program(), refused.stderr());
        assert!(refused.stderr().contains("/proc"), "{}", refused.stderr());
    }
}

#[test]
fn a_volume_at_a_link_into_proc_is_refused_and_a_tmpfs_or_what_lxcfs_shows_is_not() {
    let Some(kata) = Kata::installed() else { return };
    let volume = tempfile::tempdir().unwrap();
    let uptime = volume.path().join("uptime");
    fs::write(&uptime, "0.00 0.00\n").unwrap();
    let bound = |source: &Path| json!({"destination": "/x", "type": "bind", "source": source, "options": ["bind"]});
    let run = |runtime: &Kata, leads_to: &str, mount: Value| {
        let mut case = Case::new(&kata, "cat /proc/uptime; ls /proc/sys | wc -l")?;
        symlink(leads_to, case.file("/x")).unwrap();
        case.bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        Some(case.run(runtime, "suite-into-proc"))
    };
    for runtime in [&Kata::oracle(), &kata] {
        for leads_to in ["/proc/sys", "../proc/self/attr", "/proc"] {
            let Some(refused) = run(runtime, leads_to, bound(volume.path())) else { return };
            assert_eq!(refused.code, 1, "{:?}: {leads_to}", runtime.program());
            let line = refused.stderr();
            assert!(line.contains("/x") && line.contains("proc"), "{line}");
        }
        let shown = run(runtime, "/proc/uptime", bound(&uptime)).unwrap();
        assert!(shown.stdout().starts_with("0.00 0.00\n"), "{}", shown.stderr());
        let hidden = run(runtime, "/proc/sys", json!({"destination": "/x", "type": "tmpfs"}));
        let hidden = hidden.unwrap();
        // Newer ones refuse it as they do volumes.
        if runtime.is_oracle() && runtime.version() >= (1, 3) {
            assert_eq!(hidden.code, 1, "{}", hidden.stdout());
        } else {
            assert!(hidden.stdout().ends_with("\n0\n"), "{}", hidden.stderr());
        }
    }
}

#[test]
fn capabilities_that_nobody_knows_are_left_out_with_a_warning() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let script = "grep CapBnd /proc/self/status";
        let Some(mut case) = Case::new(&kata, script) else { return };
        let sets = &mut case.bundle.config["process"]["capabilities"];
        sets["bounding"] = json!(["UNKNOWN_CAP", "CAP_KILL", "CAP_UNKNOWN"]);
        sets["effective"] = json!(["CAP_UNKNOWN", "CAP_KILL"]);
        sets["ambient"] = json!([]);
        sets["inheritable"] = json!([]);
        sets["permitted"] = json!(["CAP_ASKED", "CAP_KILL"]);
        let output = case.run(runtime, "suite-capabilities");
        let said = (output.code, output.stdout());
        assert_eq!(said, (0, "CapBnd:\t0000000000000020\n".to_owned()), "{}", output.stderr());
        let warning =
            "ignoring unknown or unavailable capabilities: [CAP_ASKED CAP_UNKNOWN UNKNOWN_CAP]";
        let lines = output.stderr();
        let warned = lines.lines().filter(|line| line.contains(warning)).count();
        assert_eq!(warned, 1, "{:?}: {lines}", runtime.program());
    }
}

#[test]
fn a_variable_is_there_once_as_it_was_assigned_last_and_an_empty_home_is_none() {
    // Sorted, as the order is not the same with each version of runc.
    let script = "cat /proc/$$/environ | tr '\\0' '\\n' | sort";
    says("suite-env", script, "HOME=/root\nONE=\nPATH=/bin\n", |case| {
        case.bundle.config["process"]["env"] =
            json!(["ONE=two", "HOME=/over", "PATH=/bin", "ONE=", "HOME="]);
    });
}
