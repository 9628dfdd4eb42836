//! Specifications that nobody could run: `create` says so in one line that names the field, also as JSON, and leaves nothing.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_guest_tests::{Bundle, Kata, Leftovers, busybox, cgroups_named};
use serde_json::{Value, json};

/// What is set at a JSON pointer (`-` appends to a list), and words of the line.
type Case = (&'static str, Value, &'static [&'static str]);

fn filter(action: &str, argument: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["read"], "action": action, "args": [argument]}]})
}

fn filters() -> Vec<Case> {
    let argument = json!({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"});
    let sixth = json!({"index": 6, "value": 1, "op": "SCMP_CMP_EQ"});
    let operator = json!({"index": 0, "value": 1, "op": "SCMP_CMP_LIKE"});
    vec![
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_MAYBE"}),
            &["seccomp.defaultAction", "SCMP_ACT_MAYBE"],
        ),
        (
            "/linux/seccomp",
            filter("SCMP_ACT_SHRUG", argument.clone()),
            &["syscalls[0].action", "SCMP_ACT_SHRUG"],
        ),
        (
            "/linux/seccomp",
            filter("SCMP_ACT_NOTIFY", argument),
            &["syscalls[0].action", "refused", "listener"],
        ),
        ("/linux/seccomp", filter("SCMP_ACT_ERRNO", sixth), &["args[0].index", "0 to 5"]),
        ("/linux/seccomp", filter("SCMP_ACT_ERRNO", operator), &["args[0].op", "SCMP_CMP_LIKE"]),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}),
            &["seccomp.architectures[0]", "SCMP_ARCH_Z80"],
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_FAST"]}),
            &["seccomp.flags[0]", "SECCOMP_FILTER_FLAG_FAST"],
        ),
    ]
}

fn processes() -> Vec<Case> {
    let twice = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 2, "hard": 2}]);
    vec![
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_MOOD", "soft": 1, "hard": 1}]),
            &["rlimits[0].type", "RLIMIT_MOOD"],
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            &["rlimits[0]", "soft must not exceed hard"],
        ),
        ("/process/rlimits", twice, &["rlimits[1]", "set twice"]),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": -1, "hard": -1}]),
            &["rlimits[0]", "whole number"],
        ),
        ("/process/oomScoreAdj", json!(5000), &["oomScoreAdj", "-1000 to 1000"]),
        (
            "/process/capabilities/bounding",
            json!("ALL"),
            &["capabilities.bounding", "must be a list"],
        ),
        (
            "/process/user/additionalGids",
            json!([4_294_967_296_u64]),
            &["additionalGids[0]", "4294967295"],
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 1000}),
            &["scheduler.priority", "1 to 99"],
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_VIP"}),
            &["ioPriority.class", "IOPRIO_CLASS_VIP"],
        ),
        (
            "/process/execCPUAffinity",
            json!({"initial": "all"}),
            &["execCPUAffinity.initial", "list of CPUs"],
        ),
    ]
}

fn worlds() -> Vec<Case> {
    let map = |outside: u64| json!([{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": outside, "size": 10}]);
    let mount =
        |destination: &str| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    let mounts: Vec<_> = (0..10_000).map(|number| mount(&format!("/m/{number}"))).collect();
    vec![
        ("/mounts", json!(mounts), &["mounts: has 10000 mounts", "at most 2048"]),
        ("/mounts/-", mount("/a/../../b"), &["mounts[7].destination", ".."]),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "nfs", "source": "host:/x"}),
            &["mounts[7].type", "refused", "nfs"],
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/proc/sys"}),
            &["mounts[7].source", "host's kernel"],
        ),
        ("/linux/namespaces/-", json!({"type": "pid"}), &["namespaces[6]", "pid is listed twice"]),
        ("/linux/namespaces/-", json!({"type": "dream"}), &["namespaces[6].type", "dream"]),
        (
            "/linux/namespaces/2/path",
            json!("/proc/1/ns/ipc"),
            &["namespaces[2].path", "refused", "/proc/1/ns/ipc"],
        ),
        ("/linux/namespaces/-", json!({"type": "user"}), &["uidMappings", "is missing"]),
        ("/linux/uidMappings", map(100), &["uidMappings", "needs a user namespace"]),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            &["timeOffsets", "needs a time namespace"],
        ),
        (
            "/linux/sysctl",
            json!({"../../etc/passwd": "x"}),
            &["sysctl", "is not the name of a kernel parameter"],
        ),
        ("/linux/sysctl", json!({"kernel.msgmax": 4096}), &["sysctl", "must be a string"]),
        ("/linux/rootfsPropagation", json!("sideways"), &["rootfsPropagation", "sideways"]),
        ("/linux/personality", json!({"domain": "MULTICS"}), &["personality.domain", "MULTICS"]),
        ("/linux/devices", json!([{"path": "/dev/x", "type": "q"}]), &["devices[0].type", "q"]),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c"}]),
            &["devices[0]", "major and a minor"],
        ),
        ("/linux/resources", json!({"memory": {"limit": 1e30}}), &["memory.limit", "whole number"]),
        (
            "/linux/resources",
            json!({"memory": {"limit": 9_223_372_036_854_775_808_u64}}),
            &["memory.limit", "whole number"],
        ),
        ("/linux/intelRdt", json!({"closID": "x"}), &["intelRdt", "refused"]),
        ("/linux/maskedPaths", json!(["relative"]), &["maskedPaths[0]", "absolute path"]),
    ]
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Array(elements) => elements.push(value),
        object => object[name] = value,
    }
}

fn refused(cases: Vec<Case>) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["true"]);
    let whole = bundle.config.clone();
    let log = bundle.file("log.json");
    for (number, (pointer, value, words)) in cases.into_iter().enumerate() {
        bundle.config = whole.clone();
        set(&mut bundle.config, pointer, value);
        bundle.write();
        fs::remove_file(&log).ok();
        let id = format!("broken-{number}-{}", std::process::id());
        let output = kata.call(&[
            "--log",
            log.to_str().unwrap(),
            "--log-format",
            "json",
            "create",
            "--bundle",
            bundle.path(),
            &id,
        ]);
        output.assert_one_line(words);
        let logged = fs::read_to_string(&log).unwrap();
        let entry: Value = serde_json::from_str(logged.lines().last().unwrap()).unwrap();
        assert_eq!(entry["level"], "error");
        assert!(words.iter().all(|word| entry["msg"].as_str().unwrap().contains(word)), "{entry}");
        let left = fs::read_dir(kata.state()).map(|entries| entries.count()).unwrap_or(0);
        assert_eq!((left, cgroups_named(&id)), (0, Vec::new()), "left of {pointer}");
    }
    assert_eq!(Leftovers::holders(&kata.state()), Vec::<String>::new(), "processes");
}

#[test]
fn filters_of_words_that_do_not_exist_are_refused() {
    refused(filters());
}

#[test]
fn processes_that_can_not_be_are_refused() {
    refused(processes());
}

#[test]
fn worlds_that_can_not_be_are_refused() {
    refused(worlds());
}

/// What only the guest's kernel can know.
#[test]
fn what_the_guest_refuses_is_named_when_the_container_starts() {
    let cases = [
        ("/linux/sysctl", json!({"kernel.no_such_thing": "1"}), "kernel/no_such_thing"),
        (
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": "3MB", "limit": 3_145_728}]),
            "3MB",
        ),
    ];
    for (pointer, value, word) in cases {
        let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
        let mut bundle = Bundle::new(&kata, root, &["true"]);
        set(&mut bundle.config, pointer, value);
        bundle.write();
        let id = format!("broken-guest-{}", std::process::id());
        let output = kata.call(&["run", "--bundle", bundle.path(), &id]);
        output.assert_one_line(&[word]);
        let left = fs::read_dir(kata.state()).map(|entries| entries.count()).unwrap_or(0);
        assert_eq!(left, 0, "left of {pointer}");
    }
}
