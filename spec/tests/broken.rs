//! One thing wrong at a time: one line that names it.
#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use kata_spec::{check, default_for, explain};
use proptest::prelude::*;
use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};
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
        (
            "/linux/maskedPaths/-",
            json!("proc/kcore"),
            "linux.maskedPaths[10]: must be an absolute path, is \"proc/kcore\"",
        ),
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
            "/linux/sysctl",
            json!({"kernel.hostname": "asked"}),
            "linux.sysctl[\"kernel.hostname\"]: is not allowed: the OCI field for it is hostname",
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
        ("/annotations", json!({"a.b": 1}), "annotations[\"a.b\"]: must be a string, is 1"),
    ];
    assert_named(&cases);
}

#[test]
fn wrong_hooks_are_named() {
    assert_named(&[
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
    ]);
}

fn assert_named(cases: &[(&str, Value, &str)]) {
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
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt: refused"),
        ("/linux/netDevices", json!({"eth0": {"name": "x"}}), "linux.netDevices: refused"),
        (
            "/linux/namespaces/-",
            json!({"type": "user", "path": "/proc/1/ns/user"}),
            "linux.namespaces[6].path: refused: a user namespace is a container's own",
        ),
        (
            "/linux/namespaces/2",
            json!({"type": "ipc", "path": "/proc/1/ns/ipc"}),
            "linux.namespaces[2].path: refused: the ipc namespace /proc/1/ns/ipc",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}]),
            "linux.namespaces: refused: no network namespace is given",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "network"}, {"type": "ipc"}]),
            "linux.namespaces: refused: no pid namespace is given",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: refused",
        ),
        (
            "/linux/resources",
            json!({"cpu": {"realtimeRuntime": 1000}}),
            "linux.resources.cpu.realtimeRuntime: refused",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "ext4", "source": "/dev/sda"}),
            "mounts[7].type: refused: a file system of type ext4",
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

/// Numbers of a character device that this host has and no guest.
fn device_of_the_host() -> (u64, u64) {
    let names = fs::read_dir("/sys/dev/char").unwrap().flatten().map(|entry| entry.file_name());
    let numbers = names.map(|name| {
        let name = name.to_str().unwrap().to_owned();
        let (major, minor) = name.split_once(':').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    });
    numbers.filter(|(major, _): &(u64, u64)| *major == 4).max().unwrap()
}

#[test]
fn a_device_that_only_the_host_has_is_refused() {
    let (major, minor) = device_of_the_host();
    let device = json!([{"path": "/dev/x", "type": "c", "major": major, "minor": minor}]);
    let line = complaint(&[("/linux/devices", device)]);
    let words =
        format!("linux.devices[0]: refused: /dev/x (c {major}:{minor}) is a device of the host");
    assert!(line.contains(&words), "{line}");
}

#[test]
fn what_belongs_to_a_namespace_needs_it() {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let range = |inside: u64, outside: u64, size: u64| {
        json!([{"containerID": 0, "hostID": 0, "size": 5},
            {"containerID": inside, "hostID": outside, "size": size}])
    };
    let user = ("/linux/namespaces/-", json!({"type": "user"}));
    let maps = |users: Value| {
        [user.clone(), ("/linux/uidMappings", users), ("/linux/gidMappings", map.clone())]
    };
    let idmap =
        json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind", "idmap"]});
    let mapped_tmpfs =
        json!({"destination": "/x", "type": "tmpfs", "uidMappings": map, "gidMappings": map});
    let cases: &[(&[(&str, Value)], &str)] = &[
        (&[("/linux/uidMappings", map.clone())], "linux.uidMappings: needs a user namespace"),
        (std::slice::from_ref(&user), "linux.uidMappings: is missing: there is a user namespace"),
        (&maps(range(4, 100, 1)), "linux.uidMappings[1]: overlaps an earlier range by containerID"),
        (&maps(range(100, 4, 1)), "linux.uidMappings[1]: overlaps an earlier range by hostID"),
        (&maps(range(100, 100, 0)), "linux.uidMappings[1].size: must not be 0"),
        (
            &maps(json!([{"containerID": 1, "hostID": 0, "size": 9}])),
            "linux.uidMappings: has no number for the container's root (0)",
        ),
        (
            &maps(range(100, u64::from(u32::MAX), 1)),
            "linux.uidMappings[1]: goes beyond the last id from hostID",
        ),
        (
            &maps(json!(vec![json!({"containerID": 0, "hostID": 0, "size": 1}); 341])),
            "linux.uidMappings: has 341 ranges; the kernel takes at most 340",
        ),
        (&[("/mounts/-", idmap)], "mounts[7].options: idmap needs uidMappings and gidMappings"),
        (&[("/mounts/-", mapped_tmpfs)], "mounts[7].uidMappings: only a bind mount"),
        (
            &[("/linux/timeOffsets", json!({"boottime": {"secs": 1}}))],
            "linux.timeOffsets[\"boottime\"]: needs a time namespace",
        ),
        (
            &[("/linux/timeOffsets", json!({"realtime": {"secs": 1}}))],
            "linux.timeOffsets[\"realtime\"]: is no clock with an offset",
        ),
    ];
    for (changes, words) in cases {
        let line = complaint(changes);
        assert!(line.contains(words), "{changes:?}: {line}");
    }
}

#[test]
fn fields_of_scheduling_that_do_not_go_together_are_named() {
    let cases = [
        ("scheduler", json!({"policy": "SCHED_FIFO"}), "scheduler.priority: must be from 1 to 99"),
        ("scheduler", json!({"policy": "SCHED_OTHER", "priority": 1}), "priority: goes only with"),
        ("scheduler", json!({"policy": "SCHED_BATCH", "period": 1}), "period: goes only with"),
        ("scheduler", json!({"policy": "SCHED_ISO"}), "scheduler.policy: must be one of"),
        (
            "scheduler",
            json!({"policy": "SCHED_OTHER", "nice": -21}),
            "nice: must be a whole number",
        ),
        ("ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 8}), "from 0 to 7, is 8"),
        ("ioPriority", json!({"priority": 1}), "ioPriority.class: is missing"),
        ("execCPUAffinity", json!({"initial": "0-"}), "initial: must be a list of CPUs"),
        ("execCPUAffinity", json!({"final": "3-1"}), "final: has a range that ends before"),
        ("execCPUAffinity", json!({"final": "99999"}), "final: names CPU 99999, beyond the last"),
    ];
    for (field, value, words) in cases {
        let line = complaint(&[(&format!("/process/{field}"), value.clone())]);
        assert!(
            line.contains(&format!("process.{field}")) && line.contains(words),
            "{value}: {line}"
        );
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
fn options_that_a_bind_mount_has_not_are_named() {
    let bound = |options: &[&str]| json!({"destination": "/x", "type": "bind", "source": "/", "options": options});
    for word in ["nosiud", "size=1m", "mode=755", "rsuiid"] {
        let line = complaint(&[("/mounts/-", bound(&["rbind", word]))]);
        let said = format!("mounts[7].options: {word:?} is no option of a bind mount");
        assert!(line.contains(&said), "{line}");
    }
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir(bundle.path().join("rootfs")).unwrap();
    let mut config = default_for("rootfs", &["sh".to_owned()], false);
    // What engines pass, podman's own words among them.
    let passed =
        ["rbind", "rprivate", "ro", "rro", "nosuid", "nodev", "noexec", "relatime", "sync"];
    let own = ["", "defaults", "lazytime", "tmpcopyup", "nocopy", "copy", "volume-opt=o=x"];
    set(&mut config, "/mounts/-", bound(&[&passed[..], &own[..]].concat()));
    check(&config, bundle.path()).unwrap();
}

#[test]
fn volumes_over_proc_are_refused_but_where_lxcfs_has_its_own() {
    let volume = tempfile::tempdir().unwrap();
    let over = |place: &str| json!({"destination": place, "type": "bind", "source": volume.path(), "options": ["rbind"]});
    for place in ["/proc", "/proc//sys", "proc/self/attr", "/proc/./1"] {
        let line = complaint(&[("/mounts/-", over(place))]);
        assert!(line.contains("mounts[7].destination: refused: /proc"), "{place}: {line}");
    }
    let mut as_proc = over("/proc");
    as_proc["type"] = json!("proc");
    let line = complaint(&[("/mounts/-", as_proc)]);
    assert!(line.contains("mounts[7].destination: refused: /proc"), "{line}");
    fs::create_dir(volume.path().join("rootfs")).unwrap();
    for place in ["/proc/cpuinfo", "/proc/sys/crypto/fips_enabled", "/process"] {
        let mut config = default_for("rootfs", &["sh".to_owned()], false);
        set(&mut config, "/mounts/-", over(place));
        set(&mut config, "/mounts/-", json!({"destination": "/proc/acpi", "type": "tmpfs"}));
        check(&config, volume.path()).unwrap();
    }
}

#[test]
fn what_shows_the_hosts_kernel_is_refused() {
    for kind in ["debugfs", "tracefs", "bpf", "securityfs", "binfmt_misc"] {
        let mounted = match mounted_nowhere(kind) {
            Ok(mounted) => mounted,
            Err(Errno::PERM) => return eprintln!("SKIP not root"),
            // The kernel has no such file system.
            Err(_) => continue,
        };
        let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
        let line = complaint(&[("/mounts/-", bind(&path))]);
        assert!(line.contains(&format!("{path} shows the host's kernel")), "{kind}: {line}");
    }
}

#[test]
fn huge_pages_of_the_host_are_refused() {
    let mounted = match mounted_nowhere("hugetlbfs") {
        Ok(mounted) => mounted,
        Err(Errno::PERM) => return eprintln!("SKIP not root"),
        Err(error) => return eprintln!("SKIP no hugetlbfs: {error}"),
    };
    let path = format!("/proc/self/fd/{}", mounted.as_raw_fd());
    let line = complaint(&[("/mounts/-", bind(&path))]);
    let words = "mounts[7].source: refused: ";
    assert!(line.contains(words) && line.contains("huge pages of the host"), "{line}");
}

fn mounted_nowhere(kind: &str) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
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
        let runs = check(&config, std::path::Path::new("/")).is_ok();
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        let explained = explain(bundle.path()).unwrap();
        prop_assert_eq!(explained.runs(), runs, "{:?}", explained.answers);
    }
}
