//! Limits: in the guest, on the host's groups, and as the size of the VM.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use kata_guest_tests::{Bundle, Container, Kata, busybox};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A bundle with these resources, in a group of its own.
fn bundle(kata: &Kata, args: &[&str], resources: Value) -> Option<(Bundle, String)> {
    let mut bundle = Bundle::new(kata, busybox()?, args);
    let path = format!("/kata-limits-{}-{}", std::process::id(), bundle_name(&bundle));
    bundle.config["linux"]["cgroupsPath"] = json!(path);
    bundle.config["linux"]["resources"] = resources;
    bundle.write();
    Some((bundle, path))
}

fn bundle_name(bundle: &Bundle) -> String {
    let name = Path::new(bundle.path()).file_name().unwrap();
    name.to_str().unwrap().trim_start_matches('.').to_owned()
}

/// A file of a group on this host, whichever version of control groups that has.
fn host_file(path: &str, controller: &str, file: &str) -> String {
    let legacy = format!("/sys/fs/cgroup/{controller}{path}/{file}");
    let text = fs::read_to_string(&legacy).unwrap_or_else(|e| panic!("{legacy}: {e}"));
    text.trim().to_owned()
}

fn is_v1() -> bool {
    PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
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

#[test]
fn the_group_that_the_spec_names_shows_what_was_asked_for() {
    let Some(kata) = Kata::installed() else { return };
    if !is_v1() {
        println!("SKIP this host has no control groups v1");
        return;
    }
    for runtime in [&Kata::oracle(), &kata] {
        let Some((bundle, path)) = bundle(&kata, &["sleep", "1000"], ASKED()) else { return };
        let container = Container::create(runtime, &bundle, "shown");
        for (controller, file, value) in [
            ("memory", "memory.limit_in_bytes", 64 * MIB),
            ("memory", "memory.soft_limit_in_bytes", 32 * MIB),
            ("memory", "memory.memsw.limit_in_bytes", 64 * MIB),
            ("cpu", "cpu.shares", 512),
            ("cpu", "cpu.cfs_quota_us", 40_000),
            ("cpu", "cpu.cfs_period_us", 50_000),
            ("cpuset", "cpuset.cpus", 0),
            ("pids", "pids.max", 200),
        ] {
            let found = host_file(&path, controller, file);
            assert_eq!(found, value.to_string(), "{file}, oracle: {}", runtime.is_oracle());
        }
        drop(container);
        let left = Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/'));
        assert!(!left.exists(), "{} is left", left.display());
    }
}

#[test]
fn vmm_and_proxy_are_held_to_the_sum_and_what_a_vm_takes() {
    let Some(kata) = Kata::installed() else { return };
    if !is_v1() {
        println!("SKIP this host has no control groups v1");
        return;
    }
    let Some((bundle, path)) = bundle(&kata, &["sleep", "1000"], ASKED()) else { return };
    let container = Container::started(&kata, &bundle, "bound");
    let vm = format!("{path}.kata-vm");
    let procs = host_file(&vm, "memory", "cgroup.procs");
    let expected = ["vmmPid", "proxyPid"].map(|which| kata.host_pid(&container.id, which));
    for pid in expected {
        assert!(procs.lines().any(|line| line == pid.to_string()), "{pid} in {procs}");
    }
    let memory: u64 = host_file(&vm, "memory", "memory.limit_in_bytes").parse().unwrap();
    assert!((300 * MIB..500 * MIB).contains(&memory), "{memory}");
    // 0.8 of a processor, and 0.5 for devices.
    assert_eq!(host_file(&vm, "cpu", "cpu.cfs_quota_us"), "130000");
    assert_eq!(host_file(&vm, "cpuset", "cpuset.cpus"), "0");
    let monitors = host_file(&path, "memory", "cgroup.procs");
    assert_eq!(monitors.lines().collect::<Vec<_>>(), [container.pid.to_string()]);
    let traces = container.traces();
    container.remove(&traces);
    assert!(!Path::new(&format!("/sys/fs/cgroup/memory{vm}")).exists(), "{vm} is left");
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
        "20".into(),
        "40000 50000".into(),
        "1000".into(),
        // The host's second processor is the guest's only one.
        "0".into(),
        "200".into(),
        "default 910".into(),
        page(4 * MIB),
    ];
    assert_eq!(found, expected);
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() {
    let Some(kata) = Kata::installed() else { return };
    for (resources, words) in [
        (json!({"memory": {"limit": 64 * MIB, "swap": MIB}}), ["memory.swap", "below"]),
        (json!({"memory": {"limit": -7}}), ["memory.limit", "-1"]),
        (json!({"cpu": {"cpus": "many"}}), ["cpu.cpus", "many"]),
        (json!({"cpu": {"realtimeRuntime": 1000}}), ["realtimeRuntime", "refused"]),
        (json!({"cpu": {"quota": 1}}), ["cpu.cfs_quota_us", "\"1\""]),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 250, "minor": 99, "rate": 1}]}}),
            ["read_bps_device", "250:99"],
        ),
    ] {
        let Some((bundle, path)) = bundle(&kata, &["true"], resources) else { return };
        let output = kata.call(&["run", "--bundle", bundle.path(), &bundle_name(&bundle)]);
        output.assert_one_line(&words);
        assert!(!Path::new(&format!("/sys/fs/cgroup/memory{path}")).exists(), "{path} is left");
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
    assert_eq!(memory, format!("{} MiB", 512 + 8 + 64));
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
