//! Limits: in the guest, on the host's groups, and as the size of the VM.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use kata_guest_tests::{
    Bundle, Container, HostGroup, Kata, Running, busybox, map_ids, meminfo_kib, python,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

const FOREVER: &[&str] = &["sleep", "1000"];

/// A bundle with these resources, in a group of its own.
fn bundle(kata: &Kata, args: &[&str], resources: Value) -> Option<(Bundle, HostGroup)> {
    let mut bundle = Bundle::new(kata, busybox()?, args);
    let path = format!("/kata-limits-{}-{}", std::process::id(), bundle_name(&bundle));
    bundle.config["linux"]["cgroupsPath"] = json!(path);
    bundle.config["linux"]["resources"] = resources;
    bundle.write();
    Some((bundle, HostGroup::new(&path)))
}

fn bundle_name(bundle: &Bundle) -> String {
    let name = Path::new(bundle.path()).file_name().unwrap();
    name.to_str().unwrap().trim_start_matches('.').to_owned()
}

/// What the container itself sees of its group, file by file.
fn guest_files(kata: &Kata, resources: Value, files: &[&str]) -> Option<Vec<String>> {
    let script =
        files.iter().map(|file| format!("cat /sys/fs/cgroup/{file}; ")).collect::<String>();
    let (bundle, _) = bundle(kata, &["sh", "-c", &script], resources)?;
    let output = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
    assert_eq!(output.code, 0, "{}", output.stderr());
    Some(output.stdout().lines().map(str::to_owned).collect())
}

const ASKED: fn() -> Value = || {
    json!({
        "memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 64 * MIB},
        "cpu": {"shares": 512, "quota": 40_000, "period": 50_000, "cpus": "0"},
        "pids": {"limit": 200},
    })
};

/// Controller; name and value in version 1, and in version 2.
type Shown = (&'static str, [&'static str; 2], [&'static str; 2]);

/// What a group shows of [`ASKED`].
const SHOWN: &[Shown] = &[
    ("memory", ["memory.limit_in_bytes", "memory.max"], ["67108864", "67108864"]),
    ("memory", ["memory.soft_limit_in_bytes", "memory.low"], ["33554432", "33554432"]),
    ("memory", ["memory.memsw.limit_in_bytes", "memory.swap.max"], ["67108864", "0"]),
    ("cpu", ["cpu.shares", "cpu.weight"], ["512", "59"]),
    ("cpu", ["cpu.cfs_quota_us", "cpu.max"], ["40000", "40000 50000"]),
    ("cpu", ["cpu.cfs_period_us", "cpu.max"], ["50000", "40000 50000"]),
    ("cpuset", ["cpuset.cpus", "cpuset.cpus"], ["0", "0"]),
    ("pids", ["pids.max", "pids.max"], ["200", "200"]),
];

#[test]
fn the_group_that_the_spec_names_shows_what_was_asked_for() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"], ASKED()) else { return };
        let container = Container::create(runtime, &bundle, "shown");
        for (controller, names, values) in SHOWN {
            let (found, value) =
                (group.read(controller, *names), values[usize::from(HostGroup::are_v2())]);
            assert_eq!(found, value, "{names:?}, oracle: {}", runtime.is_oracle());
        }
        drop(container);
        let left = group.directory("memory");
        assert!(!left.exists(), "{} is left", left.display());
    }
}

#[test]
fn vmm_and_proxy_are_held_to_the_sum_and_what_a_vm_takes() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"], ASKED()) else { return };
    let container = Container::started(&kata, &bundle, "bound");
    let vm = group.of_vm();
    for which in ["vmmPid", "proxyPid"] {
        let (pid, pids) = (kata.host_pid(&container.id, which), vm.pids());
        assert!(pids.contains(&pid), "{which} {pid} in {pids:?}");
    }
    let memory: u64 = vm.read("memory", ["memory.limit_in_bytes", "memory.max"]).parse().unwrap();
    let state = container.state();
    let guest = state["kata"]["memory"].as_str().unwrap().trim_end_matches(" MiB");
    // Under KVM, and under TCG, whose translations take room.
    let overhead = memory / MIB - guest.parse::<u64>().unwrap();
    assert!([128, 256].contains(&overhead), "{memory} for {guest} MiB");
    // 0.8 of a processor, and 0.5 for devices.
    let quota = vm.read("cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("130000"));
    assert_eq!(vm.read("cpuset", ["cpuset.cpus"; 2]), "0");
    assert_eq!(group.pids(), [container.pid]);
    container.remove_running();
    let left = vm.directory("memory");
    assert!(!left.exists(), "{} is left", left.display());
}

#[test]
fn a_container_has_its_limits_in_the_guest() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({
        "memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB, "kernel": MIB,
                   "kernelTCP": MIB, "swappiness": 10, "disableOOMKiller": true},
        "cpu": {"shares": 512, "quota": 40_000, "period": 50_000, "burst": 1_000, "cpus": "1",
                "mems": "0"},
        "pids": {"limit": 200},
        "blockIO": {"weight": 100, "leafWeight": 100},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}],
        "unified": {"memory.high": "60000000"},
    });
    let files = [
        "memory.max",
        "memory.low",
        "memory.swap.max",
        "memory.high",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
        "io.weight",
        "hugetlb.2MB.max",
    ];
    let Some(found) = guest_files(&kata, resources, &files) else { return };
    let page = |bytes: u64| (bytes / 4096 * 4096).to_string();
    let expected = [
        page(64 * MIB),
        page(32 * MIB),
        page(32 * MIB),
        page(60_000_000),
        "59".into(),
        "40000 50000".into(),
        "1000".into(),
        // The host's second processor is the guest's only one.
        "0".into(),
        // And so is its node.
        "0".into(),
        "200".into(),
        "default 910".into(),
        page(4 * MIB),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_file_that_limits_memory_leaves_swap_to_the_fields() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({
        "memory": {"limit": 64 * MIB, "swap": 96 * MIB},
        "unified": {"memory.max": "104857600"},
    });
    let files = ["memory.max", "memory.swap.max"];
    let Some(found) = guest_files(&kata, resources, &files) else { return };
    assert_eq!(found, [(100 * MIB).to_string(), (32 * MIB).to_string()]);
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() {
    let Some(kata) = Kata::installed() else { return };
    let [quota, rate, quoted] = match HostGroup::are_v2() {
        true => ["cpu.max", "io.max", "\"1 100000\""],
        false => ["cpu.cfs_quota_us", "read_bps_device", "\"1\""],
    };
    for (resources, words) in [
        (json!({"memory": {"limit": 64 * MIB, "swap": MIB}}), ["memory.swap", "below"]),
        (json!({"memory": {"limit": -7}}), ["memory.limit", "-1"]),
        (json!({"cpu": {"cpus": "many"}}), ["cpu.cpus", "many"]),
        (json!({"cpu": {"realtimeRuntime": 1000}}), ["realtimeRuntime", "refused"]),
        (json!({"cpu": {"quota": 1}}), [quota, quoted]),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 250, "minor": 99, "rate": 1}]}}),
            [rate, "250:99"],
        ),
        (json!({"unified": {"io.max": "250:99 rbps=1"}}), [rate, "250:99"]),
        (json!({"unified": {"io.latency": "250:99 target=5"}}), ["io.latency", "refused"]),
        (json!({"unified": {"memory.nosuch": "1"}}), ["memory.nosuch", "no such file"]),
        (json!({"unified": {"memory.nosuch": ""}}), ["memory.nosuch", "no such file"]),
    ] {
        let Some((bundle, group)) = bundle(&kata, &["true"], resources) else { return };
        let output = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
        output.assert_one_line(&words);
        assert!(!group.directory("memory").exists(), "{group:?} is left");
    }
}

/// Memory of the VM and how many processors it has, as `state` and the guest tell them.
fn size(resources: Value, annotations: Value) -> Option<(String, String, Value)> {
    let kata = Kata::installed()?;
    let (mut bundle, _) = bundle(&kata, &["sh", "-c", "nproc; sleep 1000"], resources)?;
    bundle.config["annotations"] = annotations;
    bundle.write();
    let container = Container::started(&kata, &bundle, "size");
    let processors = container.stdout.until_has("\n");
    let state = container.state();
    Some((state["kata"]["memory"].as_str().unwrap().to_owned(), processors, state))
}

#[test]
fn a_memory_limit_makes_the_vm_as_large_as_it_needs() {
    let Some((memory, ..)) = size(json!({"memory": {"limit": 512 * MIB}}), json!({})) else {
        return;
    };
    assert_eq!(memory, format!("{} MiB", 512 + 8 + 2 + 64));
}

/// Beside a container's limit a guest has what all containers together leave to it: 24 MiB and a 1024th.
#[test]
fn a_large_limit_can_be_used_whole() {
    let Some(kata) = Kata::installed() else { return };
    // Above 4 GiB devices may want memory below that; a host that has not so much takes less.
    let host = fs::read_to_string("/proc/meminfo").unwrap();
    let limit = (meminfo_kib(&host, "MemTotal") / 4 * 3 * 1024).min(6 << 30);
    let resources = json!({"memory": {"limit": limit}});
    let Some((bundle, _)) = bundle(&kata, &["cat", "/proc/meminfo"], resources) else { return };
    let output = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
    let guest = meminfo_kib(&output.stdout(), "MemTotal") * 1024;
    let theirs = guest - 24 * MIB - guest / 1024;
    assert!(theirs >= limit, "{theirs} of {guest}, not {limit}: {}", output.stderr());
    assert!(theirs < limit + limit / 100 + 64 * MIB, "{theirs} of {guest} for {limit}");
}

#[test]
fn a_memory_limit_above_what_the_host_has_is_none() {
    let absurd = json!({"memory": {"limit": 1_u64 << 40}});
    let Some((memory, _, state)) = size(absurd, json!({})) else { return };
    assert_eq!(memory, "256 MiB");
    let note = state["kata"]["memoryNote"].as_str().unwrap();
    assert!(note.contains("1048576 MiB is more than"), "{note}");
}

#[test]
fn a_quota_makes_processors_rounded_up_and_at_most_the_hosts() {
    let host = std::thread::available_parallelism().unwrap().get();
    let Some((_, one, _)) = size(json!({"cpu": {"quota": 50_000}}), json!({})) else { return };
    assert_eq!(one, "1\n");
    let (_, two, _) = size(json!({"cpu": {"quota": 150_000}}), json!({})).unwrap();
    assert_eq!(two, format!("{}\n", host.min(2)));
    let (_, all, state) = size(json!({"cpu": {"quota": 100_000_000}}), json!({})).unwrap();
    assert_eq!(all, format!("{}\n", host.min(64)));
    assert!(state["kata"]["vcpusNote"].is_string(), "{state}");
    let most = json!({"io.katacontainers.vm.max_vcpus": "1"});
    let (_, capped, _) = size(json!({"cpu": {"quota": 150_000}}), most).unwrap();
    assert_eq!(capped, "1\n");
}

#[test]
fn the_processors_that_a_caller_is_held_to_are_not_the_sandboxs() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"], json!({})) else { return };
    let allowed = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
        line.unwrap().to_owned()
    };
    let all = allowed("self");
    // Of this thread, which the others are not, and of what it starts.
    let mut first = CpuSet::new();
    first.set(
        (0..CpuSet::MAX_CPU).find(|cpu| sched_getaffinity(None).unwrap().is_set(*cpu)).unwrap(),
    );
    sched_setaffinity(None, &first).unwrap();
    if allowed("thread-self") == all {
        println!("SKIP this process has but one processor");
        return;
    }
    let container = Container::started(&kata, &bundle, "pinned");
    for which in ["vmmPid", "proxyPid"] {
        let pid = kata.host_pid(&container.id, which).to_string();
        assert_eq!(allowed(&pid), all, "{which}");
    }
}

#[test]
fn a_group_in_which_nothing_can_run_is_refused() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some((bundle, group)) = bundle(&kata, &["true"], json!({})) else { return };
        let freezer = group.directory("freezer");
        fs::create_dir(&freezer).unwrap();
        let state = group.file("freezer", ["freezer.state", "cgroup.freeze"]);
        fs::write(state, if HostGroup::are_v2() { "1" } else { "FROZEN" }).unwrap();
        let refused = runtime.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
        // Whoever fails may clean up.
        fs::remove_dir(&freezer).ok();
        let said = refused.stderr();
        assert_eq!(refused.code, 1, "{said}");
        assert!(said.contains("container's cgroup unexpectedly frozen"), "{said}");
    }
}

/// runc refuses it since 1.2, and warns before: with the one container the processes of the other would end.
#[test]
fn a_group_that_somebody_is_in_is_refused() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"], json!({})) else { return };
    let first = Container::create(&kata, &bundle, "alone");
    let refused = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
    refused.assert_one_line(&["container's cgroup is not empty"]);
    assert_eq!(first.status(), "created");
}

fn make_groups_writable(bundle: &mut Bundle) {
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["nosuid", "nodev", "noexec", "rw"]);
        }
    }
    bundle.write();
}

/// A group that a container may write to is its own only from the next level on, as with a host's init system.
#[test]
fn a_container_that_may_write_its_groups_cannot_lift_its_own_limits() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 100}});
    let Some((mut bundle, _group)) = bundle(&kata, FOREVER, resources) else { return };
    make_groups_writable(&mut bundle);
    let container = Container::started(&kata, &bundle, "delegated");
    for file in ["memory.max", "pids.max", "cpu.max"] {
        let script = format!("echo max > /sys/fs/cgroup/{file}");
        let refused = container.exec(&["sh", "-c", &script], b"");
        assert_ne!(refused.code, 0, "{file}: {}", refused.stdout());
        assert!(refused.stderr().contains("not permitted"), "{file}: {}", refused.stderr());
    }
    let limits =
        container.exec(&["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"], b"");
    assert_eq!(limits.stdout(), format!("{}\n100\n", 64 * MIB));
    // What an init system does: all move below, and controllers are given to what is there.
    let script = "cd /sys/fs/cgroup && mkdir init below && for pid in $(cat cgroup.procs); do \
        echo $pid > init/cgroup.procs 2>/dev/null; done; \
        echo '+memory +pids' > cgroup.subtree_control && echo 1048576 > below/memory.max && cat below/memory.max";
    let managed = container.exec(&["sh", "-c", script], b"");
    assert_eq!((managed.code, managed.stdout().as_str()), (0, "1048576\n"), "{}", managed.stderr());
    // Whoever is added now is where its init is, and sees groups as it does.
    let added = container.exec(&["cat", "/proc/self/cgroup"], b"");
    assert_eq!((added.code, added.stdout().as_str()), (0, "0::/init\n"), "{}", added.stderr());
}

/// As systemd in a container with a user namespace needs it: the group is its root's, and its limits are not.
#[test]
fn the_root_of_a_user_namespace_manages_groups_below_its_own() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({"pids": {"limit": 100}});
    let Some((mut bundle, _group)) = bundle(&kata, FOREVER, resources) else { return };
    map_ids(&mut bundle.config);
    make_groups_writable(&mut bundle);
    manages_groups_below_its_own(&Container::started(&kata, &bundle, "mapped"));
}

/// As with runc, a user has the group of its container without a user namespace, too.
#[test]
fn who_is_not_root_manages_groups_below_its_own() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({"pids": {"limit": 100}});
    let Some((mut bundle, _group)) = bundle(&kata, FOREVER, resources) else { return };
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    make_groups_writable(&mut bundle);
    manages_groups_below_its_own(&Container::started(&kata, &bundle, "unmapped"));
}

fn manages_groups_below_its_own(container: &Container) {
    let script = "cd /sys/fs/cgroup && mkdir init below && for pid in $(cat cgroup.procs); do \
        echo $pid > init/cgroup.procs 2>/dev/null; done; \
        echo +pids > cgroup.subtree_control && echo 5 > below/pids.max && cat below/pids.max";
    let managed = container.exec(&["sh", "-c", script], b"");
    assert_eq!((managed.code, managed.stdout().as_str()), (0, "5\n"), "{}", managed.stderr());
    let script = "cd /sys/fs/cgroup; echo max > pids.max; cat pids.max";
    let lifted = container.exec(&["sh", "-c", script], b"");
    let why = lifted.stderr();
    assert_eq!(lifted.stdout(), "100\n", "{why}");
    assert!(why.contains("ermission denied") || why.contains("not permitted"), "{why}");
}

/// What is in a threaded group is told by the one above it.
#[test]
fn processes_in_a_threaded_group_are_listed_and_signalled() {
    let Some(kata) = Kata::installed() else { return };
    let script = "trap 'exit 3' TERM; while :; do sleep 1; done";
    let Some((mut bundle, _group)) = bundle(&kata, &["sh", "-c", script], json!({})) else {
        return;
    };
    make_groups_writable(&mut bundle);
    let container = Container::started(&kata, &bundle, "threaded");
    let script = "cd /sys/fs/cgroup && mkdir threads && echo threaded >threads/cgroup.type && \
        echo 1 >threads/cgroup.threads && cat /proc/1/cgroup";
    let moved = container.exec(&["sh", "-c", script], b"");
    assert_eq!((moved.code, &*moved.stdout()), (0, "0::/threads\n"), "{}", moved.stderr());
    let listed = kata.call(&["ps", &container.id]);
    assert_eq!(listed.code, 0, "{}", listed.stderr());
    assert!(listed.stdout().contains("sleep 1"), "{}", listed.stdout());
    let killed = kata.call(&["kill", "--all", &container.id, "TERM"]);
    assert_eq!(killed.code, 0, "{}", killed.stderr());
    assert_eq!(container.wait().0, 3);
}

/// The kernel would allow 1,900 in a guest of this size.
#[test]
fn threads_are_limited_by_memory_as_on_a_host() {
    let script = "
import threading
threading.stack_size(65536)
end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range(2500)]
for thread in threads:
    thread.start()
print(threading.active_count())
end.set()";
    let Some(output) = python(script, |_| ()) else { return };
    assert_eq!((output.code, output.stdout().as_str()), (0, "2501\n"), "{}", output.stderr());
}

#[test]
fn a_process_that_a_limit_keeps_away_is_an_error_that_says_so() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({"pids": {"limit": 1}});
    let Some((bundle, _group)) = bundle(&kata, &["sleep", "1000"], resources) else { return };
    let container = Container::started(&kata, &bundle, "pids");
    // The limit holds on the host, too, where the one process that stands for the container has threads.
    assert_eq!(container.status(), "running");
    let refused = container.exec(&["true"], b"");
    assert_eq!(refused.code, 255);
    assert!(refused.stderr().contains("resource temporarily unavailable"), "{}", refused.stderr());
    assert_eq!(container.status(), "running");
}

/// Waits until a container that is being started has its VMM.
fn booting(group: &HostGroup) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while group.of_vm().pids().len() < 2 {
        assert!(Instant::now() < deadline, "no VMM");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_comes_while_a_container_starts_waits_for_it() {
    let Some(kata) = Kata::installed() else { return };
    let resources = json!({"pids": {"limit": 50}});
    let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"], resources) else { return };
    let container = Container::create(&kata, &bundle, "early");
    let mut start = kata.command(&["start", &container.id]).spawn().unwrap();
    booting(&group);
    let asked =
        [&["update", "--pids-limit", "99", &container.id][..], &["exec", &container.id, "true"]];
    for asking in asked.map(|words| Running::start(kata.command(words))) {
        let done = asking.finish();
        assert_eq!(done.code, 0, "{}", done.stderr());
    }
    assert!(start.wait().unwrap().success());
    assert_eq!(container.exec(&["cat", "/sys/fs/cgroup/pids.max"], b"").stdout(), "99\n");
}

/// As engines on a host under systemd write them, and with a user namespace, too, whose root may raise none.
#[test]
fn as_many_open_files_are_had_as_on_a_host() {
    let Some(kata) = Kata::installed() else { return };
    for mapped in [false, true] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sh", "-c", "ulimit -Sn; ulimit -Hn"]);
        bundle.config["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": 1_048_577, "hard": 1_073_741_816}]);
        if mapped {
            map_ids(&mut bundle.config);
        }
        bundle.write();
        let output = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
        let said = (output.code, output.stdout());
        assert_eq!(said, (0, "1048577\n1073741816\n".to_owned()), "{}", output.stderr());
    }
}

/// What sees a container into being has limits of its own.
#[test]
fn small_limits_in_a_user_namespace_are_the_programs_alone() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, FOREVER);
    bundle.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_FSIZE", "soft": 1, "hard": 1},
        {"type": "RLIMIT_NOFILE", "soft": 16, "hard": 16},
    ]);
    map_ids(&mut bundle.config);
    bundle.write();
    let container = Container::started(&kata, &bundle, "small");
    let done = container.exec(&["sh", "-c", "ulimit -Hn"], b"");
    assert_eq!((done.code, &*done.stdout()), (0, "16\n"), "{}", done.stderr());
}
