//! One thing wrong at a time: one line that names it.
#![allow(clippy::unwrap_used)]

use std::{error::Error, fs};

use kata_spec::{check, default_for};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The message, with its causes, of a default configuration in which the value at a JSON pointer was set.
fn complaint(changes: &[(&str, Value)]) -> String {
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir(bundle.path().join("rootfs")).unwrap();
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    for (pointer, value) in changes {
        set(&mut config, pointer, value.clone());
    }
    let error = check(&config, bundle.path()).map(drop).unwrap_err();
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(elements) if name == "-" => elements.push(value),
        Value::Array(elements) => elements[name.parse::<usize>().unwrap()] = value,
        object => object[name] = value,
    }
}

fn bind(source: &str) -> Value {
    json!({"destination": "/x", "type": "bind", "source": source, "options": ["rbind"]})
}

#[test]
fn wrong_fields_are_named() {
    let cases = [
        ("/ociVersion", json!("2.0.0"), "ociVersion: must be some version 1.x, is \"2.0.0\""),
        ("/ociVersion", Value::Null, "ociVersion: is missing"),
        ("/process", Value::Null, "process: is missing"),
        ("/process/args", json!([]), "process.args: must name a program"),
        ("/process/args", json!(["a\0b"]), "process.args[0]: must not contain a NUL"),
        ("/process/cwd", json!("srv"), "process.cwd: must be an absolute path"),
        ("/process/env", json!(["A=1", "secret"]), "process.env[1]: must be NAME=value"),
        (
            "/process/user/uid",
            json!("root"),
            "process.user.uid: must be a whole number from 0 to 4294967295, is \"root\"",
        ),
        ("/process/user/uid", json!(-1), "process.user.uid: must be a whole number"),
        ("/process/user/uid", json!(1.5), "process.user.uid: must be a whole number"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "process.rlimits[0].type: must be one of RLIMIT_AS",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "process.rlimits[0]: soft must not exceed hard",
        ),
        ("/root", json!([]), "root: must be an object, is a list"),
        ("/root/path", json!(""), "root.path: must not be empty"),
        ("/mounts", json!({}), "mounts: must be a list"),
        ("/mounts/-", json!({"type": "tmpfs"}), "mounts[7].destination: is missing"),
        (
            "/mounts/-",
            json!({"destination": "/a/../b", "type": "tmpfs"}),
            "mounts[7].destination: must not contain ..",
        ),
        ("/mounts/-", json!({"destination": "/a"}), "mounts[7].type: is missing"),
        ("/hostname", json!("h".repeat(65)), "hostname: must not be longer than 64 bytes"),
        ("/linux/namespaces/-", json!({"type": "pid"}), "linux.namespaces[6]: pid is listed twice"),
        (
            "/linux/namespaces/-",
            json!({"type": "moon"}),
            "linux.namespaces[6].type: must be one of pid, network",
        ),
        ("/linux/sysctl", json!({"net..x": "1"}), "linux.sysctl[\"net..x\"]: is not the name"),
        (
            "/linux/sysctl",
            json!({"../../etc/passwd": "1"}),
            "is not the name of a kernel parameter",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "MAYBE"}),
            "linux.seccomp.defaultAction: must be one of",
        ),
        (
            "/linux/devices",
            json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices[0].path: must be an absolute path",
        ),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "bin/true"}]}),
            "hooks.createRuntime[0].path: must be an absolute path",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/bin/true", "timeout": 0}]}),
            "hooks.poststop[0].timeout: must be a whole number from 1 to",
        ),
        ("/annotations", json!({"a.b": 1}), "annotations[\"a.b\"]: must be a string, is 1"),
    ];
    for (pointer, value, words) in cases {
        let line = complaint(&[(pointer, value.clone())]);
        assert!(
            line.starts_with("config.json: ") && line.contains(words),
            "{pointer} {value}: {line}"
        );
    }
}

#[test]
fn what_is_not_applied_is_refused_by_name() {
    let cases = [
        ("/windows", json!({"x": 1}), "windows: refused"),
        ("/process/scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler: refused"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt: refused"),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "linux.uidMappings: refused",
        ),
        ("/linux/namespaces/-", json!({"type": "user"}), "linux.namespaces[6]: refused"),
        (
            "/linux/namespaces/2",
            json!({"type": "ipc", "path": "/proc/1/ns/ipc"}),
            "linux.namespaces[2].path: refused: the ipc namespace /proc/1/ns/ipc",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: refused",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]),
            "linux.devices[0]: refused: /dev/kvm (c 10:232)",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
            "linux.devices[0]: refused: /dev/sda (b 8:0)",
        ),
        (
            "/linux/resources",
            json!({"memory": {"disableOOMKiller": true}}),
            "linux.resources.memory.disableOOMKiller: refused",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "overlay", "source": "overlay"}),
            "mounts[7].type: refused: a file system of type overlay",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "idmap"]}),
            "mounts[7].options: refused: idmap",
        ),
        (
            "/mounts/-",
            bind("/proc/sys"),
            "mounts[7].source: refused: /proc/sys shows the host's kernel",
        ),
        (
            "/mounts/-",
            bind("/sys/kernel"),
            "mounts[7].source: refused: /sys/kernel shows the host's kernel",
        ),
    ];
    for (pointer, value, words) in cases {
        let line = complaint(&[(pointer, value.clone())]);
        assert!(line.contains(words), "{pointer} {value}: {line}");
    }
}

#[test]
fn host_paths_that_are_not_there_are_named() {
    let line = complaint(&[("/root/path", json!("/no/such/root"))]);
    assert_eq!(
        line,
        "config.json: root.path: /no/such/root: No such file or directory (os error 2)"
    );
    let line = complaint(&[("/root/path", json!("/dev/null"))]);
    assert!(line.starts_with("config.json: root.path: /dev/null: not a directory"), "{line}");
    let line = complaint(&[("/mounts/-", bind("/no/such/volume"))]);
    assert!(line.contains("mounts[7].source: /no/such/volume: No such file"), "{line}");
}

#[test]
fn a_socket_or_fifo_of_the_host_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("engine.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let line = complaint(&[("/mounts/-", bind(socket.to_str().unwrap()))]);
    assert!(line.contains("is a socket of the host"), "{line}");
    drop(listener);
}

#[test]
fn nothing_set_is_nothing_refused() {
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir(bundle.path().join("rootfs")).unwrap();
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    for (pointer, value) in [
        ("/hooks", json!({"prestart": [], "poststop": null})),
        ("/windows", Value::Null),
        ("/linux/intelRdt", json!({})),
        ("/linux/uidMappings", json!([])),
        ("/process/rlimits", Value::Null),
        ("/process/selinuxLabel", json!("")),
        (
            "/linux/resources",
            json!({"blockIO": {"weightDevice": null}, "cpu": {"realtimeRuntime": 0}}),
        ),
    ] {
        set(&mut config, pointer, value);
    }
    check(&config, bundle.path()).unwrap();
}

/// Any JSON, of a few words that the table knows.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("network"), Just("/"), Just("bind"), Just("c"), Just("\0")]
            .prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("ociVersion"),
        Just("process"),
        Just("args"),
        Just("env"),
        Just("cwd"),
        Just("root"),
        Just("path"),
        Just("mounts"),
        Just("destination"),
        Just("type"),
        Just("source"),
        Just("options"),
        Just("linux"),
        Just("namespaces"),
        Just("devices"),
        Just("seccomp"),
        Just("rlimits"),
        Just("capabilities"),
        Just("bounding"),
        Just("resources"),
        Just("memory"),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_panics(document in any_json(), part in "/(process|root|mounts|linux)") {
        let mut config = default_for("/", &["sh".to_owned()], false);
        check(&document, std::path::Path::new("/")).ok();
        set(&mut config, &part, document);
        check(&config, std::path::Path::new("/")).ok();
    }
}
