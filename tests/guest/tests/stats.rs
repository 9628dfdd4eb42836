//! What a container uses, and other limits for one that runs.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use kata_guest_tests::{
    Bundle, Container, HostGroup, HostProcess, Kata, Output, Running, busybox, run,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Runs a claim on Kata and on runc, each with a root and a bundle of its own, in a group of its own.
fn on_both(args: &[&str], claim: impl Fn(&Kata, &Bundle, &HostGroup)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some((bundle, group)) = bundle(&kata, args) else { return };
        claim(runtime, &bundle, &group);
    }
}

fn bundle(kata: &Kata, args: &[&str]) -> Option<(Bundle, HostGroup)> {
    let mut bundle = Bundle::new(kata, busybox()?, args);
    let name = bundle.path().rsplit('/').next().unwrap().trim_start_matches('.').to_owned();
    let group = format!("/kata-stats-{}-{name}", std::process::id());
    bundle.config["linux"]["cgroupsPath"] = json!(group);
    bundle.config["linux"]["resources"] =
        json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}});
    bundle.write();
    Some((bundle, HostGroup::new(&group)))
}

fn statistics(container: &Container) -> Value {
    let output = container.call(&["events", "--stats"]);
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert_eq!(output.stdout().lines().count(), 1, "one line");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn update(container: &Container, options: &[&str]) -> Output {
    container.call(&[&["update"], options].concat())
}

fn must(output: &Output) {
    assert_eq!(output.code, 0, "{}", output.stderr());
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const QUOTA: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];

/// The first word of a file of a group: version 2 has quota and period in one.
fn first_word(group: &HostGroup, controller: &str, names: [&str; 2]) -> String {
    group.read(controller, names).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn events_tell_what_runcs_tell() {
    const SCRIPT: &str =
        "dd if=/dev/zero of=/dev/null bs=1M count=20 2>/dev/null; sleep 100 & echo up; wait";
    on_both(&["sh", "-c", SCRIPT], |runtime, bundle, _| {
        let container = Container::started(runtime, bundle, "events");
        container.stdout.until_has("up");
        let event = statistics(&container);
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(container.id)));
        let data = &event["data"];
        let number = |pointer: &str| {
            data.pointer(pointer)
                .and_then(Value::as_u64)
                .unwrap_or_else(|| panic!("{pointer}: {data}"))
        };
        assert!(number("/cpu/usage/total") > 1_000_000, "{data}");
        assert_eq!(number("/memory/usage/limit"), 64 * MIB);
        assert!((4096..64 * MIB).contains(&number("/memory/usage/usage")), "{data}");
        assert_eq!((number("/pids/current"), number("/pids/limit")), (2, 50));
        assert!(data["hugetlb"].is_object() && data["blkio"].is_object(), "{data}");
    });
}

#[test]
fn events_go_on_until_the_end() {
    // Alone: runc's go on until the container is deleted.
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "events-on");
    let follow = kata.command(&["events", "--interval", "200ms", &container.id]);
    let running = Running::start(follow);
    running.stdout.until("two lines", |text| text.lines().count() >= 2);
    must(&container.kill("KILL"));
    let output = running.finish();
    assert_eq!(output.code, 0, "{}", output.stderr());
    let events: Vec<Value> =
        output.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|event| event["type"] == "stats"), "{before:?}");
    assert_eq!((&last["type"], &last["data"]["code"]), (&json!("exit"), &json!(137)));
}

#[test]
fn ps_has_the_hosts_pid_for_engines_and_the_guests_for_people() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sh", "-c", "sleep 1234 & echo up; wait"]) else {
        return;
    };
    let container = Container::started(&kata, &bundle, "ps");
    container.stdout.until_has("up");
    let engines = kata.call(&["ps", "--format", "json", &container.id]);
    assert_eq!(serde_json::from_slice::<Value>(&engines.stdout).unwrap(), json!([container.pid]));
    let people = kata.call(&["ps", &container.id]).stdout();
    let line = people.lines().find(|line| line.ends_with("sleep 1234")).expect(&people);
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[0], words[5]), ("root", "?"), "{people}");
    let titles: Vec<&str> = people.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
}

#[test]
fn a_stopped_container_has_used_what_it_last_used() {
    let Some(kata) = Kata::installed() else { return };
    let script = "dd if=/dev/zero of=/dev/null bs=1M count=50 2>/dev/null; exit 3";
    let Some((bundle, _)) = bundle(&kata, &["sh", "-c", script]) else { return };
    let container = Container::started(&kata, &bundle, "last-words");
    assert_eq!(container.wait().0, 3);
    let event = statistics(&container);
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 1_000_000, "{event}");
}

#[test]
fn a_guest_that_hangs_hangs_no_caller() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "hung");
    let before = statistics(&container);
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    let started = Instant::now();
    assert_eq!(statistics(&container), before, "the last that it said");
    let listed = kata.call(&["ps", "--format", "json", &container.id]);
    assert_eq!(serde_json::from_slice::<Value>(&listed.stdout).unwrap(), json!([container.pid]));
    let took = started.elapsed();
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    // 2 s and 1 s, and the starts of two programs on a busy host.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// Waits in the container until a file of its group has a value, or says what it has instead.
fn await_file(container: &Container, file: &str, value: &str) {
    let script = format!(
        "for i in $(seq 40); do [ \"$(cat /sys/fs/cgroup/{file})\" = '{value}' ] && exit 0; sleep 0.05; done; \
         cat /sys/fs/cgroup/{file}; exit 1"
    );
    let output = container.exec(&["sh", "-c", &script], b"");
    assert_eq!(output.code, 0, "{file} is {}", output.stdout());
}

#[test]
fn an_update_is_seen_inside_and_on_the_host() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "update");
    let options = [
        "--memory=96M",
        "--memory-swap=128M",
        "--cpu-quota=30000",
        "--cpu-period=60000",
        "--cpu-share=512",
        "--pids-limit=77",
    ];
    let started = Instant::now();
    must(&update(&container, &options));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    for (file, value) in [
        ("memory.max", (96 * MIB).to_string()),
        ("memory.swap.max", (32 * MIB).to_string()),
        ("cpu.max", "30000 60000".into()),
        ("cpu.weight", "59".into()),
        ("pids.max", "77".into()),
    ] {
        await_file(&container, file, &value);
    }
    // What an engine sends that has nothing to say of them.
    let zeros = br#"{"cpu": {"shares": 300, "quota": 0, "period": 0}, "memory": {"limit": 0}}"#;
    must(&run(kata.command(&["update", "--resources", "-", &container.id]), zeros));
    await_file(&container, "cpu.weight", "39");
    await_file(&container, "cpu.max", "30000 60000");
    assert_eq!(group.read("memory", MEMORY), (96 * MIB).to_string());
    assert_eq!(first_word(&group, "cpu", QUOTA), "30000");
    // Half a processor, and half of one for devices.
    assert_eq!(first_word(&group.of_vm(), "cpu", QUOTA), "100000");
    let record = kata.state().join(&container.id).join("state.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["resources"]["memory"]["limit"], 96 * MIB);
    assert_eq!(record["resources"]["pids"]["limit"], 77);
}

#[test]
fn an_update_may_ask_for_what_does_not_fit_what_is_in_force() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "bandwidth");
    for cpu in [
        json!({"quota": 100_000, "period": 100_000, "burst": 50_000}),
        json!({"quota": 20_000, "period": 100_000, "burst": 10_000}),
        json!({"shares": 1024, "idle": 1}),
    ] {
        let resources = json!({"cpu": cpu}).to_string();
        let command = kata.command(&["update", "--resources", "-", &container.id]);
        must(&run(command, resources.as_bytes()));
    }
    await_file(&container, "cpu.max", "20000 100000");
    await_file(&container, "cpu.max.burst", "10000");
    await_file(&container, "cpu.idle", "1");
    assert_eq!(first_word(&group, "cpu", QUOTA), "20000");
}

/// As a kubelet has a container without swap; runc writes the file again with every update.
#[test]
fn a_file_that_limits_swap_outlives_updates_of_memory() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _group)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "swap-file");
    let said = |unified: Value| {
        let resources = json!({"unified": unified}).to_string();
        let command = kata.command(&["update", "--resources", "-", &container.id]);
        must(&run(command, resources.as_bytes()));
    };
    said(json!({"memory.swap.max": "4194304"}));
    must(&update(&container, &["--memory=96M", "--memory-swap=128M"]));
    await_file(&container, "memory.max", &(96 * MIB).to_string());
    await_file(&container, "memory.swap.max", "4194304");
    said(json!({"memory.max": "max"}));
    await_file(&container, "memory.max", "max");
    await_file(&container, "memory.swap.max", "4194304");
}

#[test]
fn an_update_comes_from_a_file_or_stdin_and_changes_no_more() {
    on_both(&["sleep", "1000"], |runtime, bundle, group| {
        let container = Container::started(runtime, bundle, "update-file");
        let command = runtime.command(&["update", "--resources", "-", &container.id]);
        must(&run(command, br#"{"cpu": {"shares": 300}, "memory": {"limit": 0}}"#));
        let file = bundle.file("resources.json");
        fs::write(&file, r#"{"pids": {"limit": 33}}"#).unwrap();
        must(&update(&container, &["--resources", file.to_str().unwrap()]));
        must(&update(&container, &[]));
        assert_eq!(group.read("memory", MEMORY), (64 * MIB).to_string());
        let weight = group.read("cpu", ["cpu.shares", "cpu.weight"]);
        assert_eq!(weight, if HostGroup::are_v2() { "39" } else { "300" });
        assert_eq!(group.read("pids", ["pids.max"; 2]), "33");
    });
}

#[test]
fn a_created_container_starts_with_its_updated_limits() {
    let Some(kata) = Kata::installed() else { return };
    let args = ["sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max"];
    let Some((bundle, _)) = bundle(&kata, &args) else { return };
    let container = Container::create(&kata, &bundle, "update-created");
    must(&update(&container, &["--pids-limit", "21"]));
    container.must("start");
    assert_eq!(container.stdout.until_end(), format!("21\n{}\n", 64 * MIB));
}

#[test]
fn processors_come_up_for_an_update() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("SKIP this host has one processor");
        return;
    }
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "processors");
    assert_eq!(container.exec(&["nproc"], b"").stdout(), "1\n");
    must(&update(&container, &["--cpu-quota", "200000", "--cpu-period", "100000"]));
    assert_eq!(container.exec(&["nproc"], b"").stdout(), "2\n");
}

#[test]
fn updates_that_make_no_sense_are_refused_and_change_nothing() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, group)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "absurd");
    for (options, word) in [
        (&["--memory-swap=1M"][..], "memory.swap"),
        (&["--cpu-quota=1"], QUOTA[usize::from(HostGroup::are_v2())]),
        (&["--cpuset-cpus=abc"], "cpu.cpus"),
        (&["--cpu-rt-runtime=1000"], "realtimeRuntime"),
        (&["--memory=lots"], "lots"),
        (&["--resources=/no/such/file"], "/no/such/file"),
    ] {
        let output = update(&container, options);
        assert_ne!(output.code, 0, "{options:?}");
        assert!(output.stderr().contains(word), "{options:?}: {}", output.stderr());
    }
    let broken = kata.command(&["update", "--resources", "-", &container.id]);
    run(broken, b"{").assert_one_line(&["resources"]);
    await_file(&container, "memory.max", &(64 * MIB).to_string());
    await_file(&container, "cpu.max", "max 100000");
    let unlimited = if HostGroup::are_v2() { "max" } else { "-1" };
    assert_eq!(first_word(&group, "cpu", QUOTA), unlimited);
    must(&container.kill("KILL"));
    container.wait();
    update(&container, &["--memory=80M"]).assert_one_line(&["stopped"]);
}

#[test]
fn memory_that_the_vm_does_not_have_is_told() {
    let Some(kata) = Kata::installed() else { return };
    let Some((bundle, _)) = bundle(&kata, &["sleep", "1000"]) else { return };
    let container = Container::started(&kata, &bundle, "above");
    let output = update(&container, &["--memory=1G"]);
    must(&output);
    assert!(output.stderr().contains("can't grow"), "{}", output.stderr());
    await_file(&container, "memory.max", &(1024 * MIB).to_string());
    must(&update(&container, &["--memory=64M"]));
    assert!(container.state()["kata"]["memoryNote"].is_null());
}
