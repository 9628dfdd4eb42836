//! Hooks of a spec: when they run, where, with what, and what becomes of their failures.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use kata_guest_tests::{Bundle, Container, Kata, Leftovers, Output, Running, Wire, busybox};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, mkfifoat},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::{Value, json};

/// A hook that is waited for is waited for a thousand seconds.
const SOON: Duration = Duration::from_secs(60);

const FOREVER: &[&str] = &["sleep", "1000"];

/// Runs a claim on Kata and on runc, each with a root and a bundle of its own.
fn on_both(args: &[&str], claim: impl Fn(&Kata, Bundle)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        claim(runtime, Bundle::new(&kata, root, args));
    }
}

/// The same on Kata alone, where runc does something else than the specification says.
fn on_kata(args: &[&str], claim: impl Fn(&Kata, Bundle)) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, args);
    claim(&kata, bundle);
}

/// A hook that is a shell script.
fn shell(script: &str) -> Value {
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    })
}

/// Gives a bundle one hook of a kind.
fn hook(bundle: &mut Bundle, kind: &str, hook: Value) {
    bundle.config["hooks"][kind] = json!([hook]);
    bundle.write();
}

/// A hook that appends `KIND STATE` to a file of the bundle.
fn note(bundle: &mut Bundle, kind: &str) {
    let log = bundle.file("log");
    let script = format!("{{ printf '{kind} '; cat; echo; }} >> {}", log.display());
    hook(bundle, kind, shell(&script));
}

/// What [`note`] has noted of a kind.
fn noted(bundle: &Bundle, kind: &str) -> Value {
    let log = fs::read_to_string(bundle.file("log")).unwrap_or_default();
    let line = log.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    line.map_or(Value::Null, |json| serde_json::from_str(json).unwrap())
}

/// The kinds that have been noted, in their order.
fn order(bundle: &Bundle) -> Vec<String> {
    let log = fs::read_to_string(bundle.file("log")).unwrap_or_default();
    log.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn create(runtime: &Kata, bundle: &Bundle, id: &str) -> Output {
    runtime.call(&["create", "--bundle", bundle.path(), id])
}

#[test]
fn hooks_run_in_their_order_and_are_told_the_state() {
    on_both(FOREVER, |runtime, mut bundle| {
        bundle.config["annotations"] = json!({"a.b": "c"});
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            note(&mut bundle, kind);
        }
        let container = Container::create(runtime, &bundle, "order");
        let created = order(&bundle);
        assert_eq!(created[..3], ["prestart", "createRuntime", "createContainer"]);
        container.must("start");
        assert_eq!(order(&bundle)[3..], ["poststart"]);
        assert_eq!(container.call(&["delete", "--force"]).code, 0);
        assert_eq!(order(&bundle)[4..], ["poststop"]);
        for (kind, status) in
            [("prestart", "creating"), ("createRuntime", "creating"), ("poststop", "stopped")]
        {
            let state = noted(&bundle, kind);
            assert_eq!(state["status"], status, "{kind}");
            assert_eq!(state["id"], container.id, "{kind}");
            assert_eq!(state["bundle"], bundle.path(), "{kind}");
            assert_eq!(state["annotations"], json!({"a.b": "c"}), "{kind}");
            if !runtime.is_oracle() {
                // runc tells its own version.
                assert_eq!(state["ociVersion"], bundle.config["ociVersion"], "{kind}");
            }
            let pid = (status == "creating").then_some(container.pid);
            assert_eq!(state["pid"], json!(pid), "{kind}");
        }
        assert_eq!(noted(&bundle, "createContainer")["status"], "creating");
        assert_eq!(noted(&bundle, "poststart")["pid"], container.pid);
        if !runtime.is_oracle() {
            // runc runs it before the start.
            assert_eq!(created.len(), 3);
            assert_eq!(noted(&bundle, "poststart")["status"], "running");
        }
    });
}

#[test]
fn a_hook_of_a_run_in_the_foreground_follows_its_start_and_its_end() {
    on_both(&["echo", "said"], |runtime, mut bundle| {
        for kind in ["poststart", "poststop"] {
            note(&mut bundle, kind);
        }
        let id = format!("hooks-run-{}", std::process::id());
        let done = runtime.call(&["run", "--bundle", bundle.path(), &id]);
        assert_eq!((done.code, done.stdout().as_str()), (0, "said\n"), "{}", done.stderr());
        assert_eq!(order(&bundle), ["poststart", "poststop"]);
    });
}

#[test]
fn a_link_that_a_hook_brings_is_the_containers() {
    // As docker's libnetwork does: nothing may look at the namespace before the hook has run.
    let script = "cat /sys/class/net/eth0/mtu; ip addr show eth0 | grep -o '10.123.0.2/24'";
    on_both(&["sh", "-c", script], |runtime, mut bundle| {
        // Its other end is in a namespace of a peer, from the start: the host's own is nobody's.
        let wire = Wire::bare();
        hook(
            &mut bundle,
            "prestart",
            shell(&format!(
                "set -e; pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
                 ip link add eth0 mtu 1400 netns $pid type veth \
                 peer name peer0 mtu 1400 netns {}; \
                 exec nsenter --net=/proc/$pid/ns/net sh -c \
                 'ip addr add 10.123.0.2/24 dev eth0; ip link set eth0 up'",
                wire.peer
            )),
        );
        let container = Container::started(runtime, &bundle, "link");
        assert_eq!(container.stdout.until_end(), "1400\n10.123.0.2/24\n");
    });
}

#[test]
fn a_hook_of_the_container_is_in_its_network_and_sees_mounts_that_stay_with_it() {
    on_both(&["cat", "/mnt/there"], |runtime, mut bundle| {
        fs::create_dir_all(bundle.root().file("/mnt")).unwrap();
        let seen = bundle.file("seen");
        hook(
            &mut bundle,
            "createContainer",
            shell(&format!(
                "set -e; pwd -P > {0}; readlink /proc/self/ns/net >> {0}; \
                 mount -t tmpfs hook mnt; echo of the hook > mnt/there",
                seen.display()
            )),
        );
        let container = Container::create(runtime, &bundle, "place");
        let seen = fs::read_to_string(seen).unwrap();
        let network = fs::read_link(format!("/proc/{}/ns/net", container.pid)).unwrap();
        let root = fs::canonicalize(bundle.root().path()).unwrap();
        assert_eq!(seen, format!("{}\n{}\n", root.display(), network.display()));
        assert!(!bundle.root().file("/mnt/there").exists(), "a mount is left on the host");
        container.must("start");
        assert_eq!(container.stdout.until_end(), "of the hook\n");
    });
}

#[test]
fn a_hook_without_an_environment_has_the_callers_or_the_programs() {
    on_both(&["true"], |runtime, mut bundle| {
        let seen = bundle.file("seen");
        let script = |place: &str| json!(["sh", "-c", format!("echo $MARK > {place}")]);
        let on_host = json!({"path": "/bin/sh", "args": script(seen.to_str().unwrap())});
        hook(&mut bundle, "createRuntime", on_host);
        let inside = "echo $MARK > /seen; echo $HOME";
        let inside = json!({"path": "/bin/sh", "args": ["sh", "-uec", inside]});
        hook(&mut bundle, "startContainer", inside);
        bundle.config["process"]["env"] = json!(["PATH=/bin", "MARK=program"]);
        bundle.write();
        let container = Container::create_with(runtime, &bundle, "inherits", |command| {
            command.env("MARK", "caller");
        });
        assert_eq!(fs::read_to_string(&seen).unwrap(), "caller\n");
        container.must("start");
        container.wait();
        assert_eq!(fs::read_to_string(bundle.root().file("/seen")).unwrap(), "program\n");
    });
}

#[test]
fn a_hook_in_the_container_runs_there_before_the_program() {
    let script = "cat /tmp/hook; echo program";
    on_both(&["sh", "-c", script], |runtime, mut bundle| {
        bundle.config["process"]["user"] = json!({"uid": 1234, "gid": 5});
        bundle.config["annotations"] = json!({"a.b": "c"});
        fs::create_dir_all(bundle.root().file("/tmp")).unwrap();
        let anybody = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(bundle.root().file("/tmp"), anybody).unwrap();
        let hook_script = "{ id -u; echo $X; cat; echo; } > /tmp/hook";
        let hook_in = json!({
            "path": "/bin/sh", "args": ["sh", "-c", hook_script], "env": ["X=y", "PATH=/bin"],
        });
        hook(&mut bundle, "startContainer", hook_in);
        let container = Container::create(runtime, &bundle, "inside");
        assert!(!bundle.root().file("/tmp/hook").exists());
        container.must("start");
        let said = container.stdout.until_end();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3]), ("1234", "y", "program"), "{said}");
        let mut state: Value = serde_json::from_str(lines[2]).unwrap();
        state.as_object_mut().unwrap().remove("ociVersion");
        let wanted = json!({
            "id": container.id, "status": "created", "pid": 1,
            "bundle": bundle.path(), "annotations": {"a.b": "c"},
        });
        assert_eq!(state, wanted);
    });
}

#[test]
fn a_hook_in_the_container_is_under_its_filters() {
    on_both(&["cat", "/seen"], |runtime, mut bundle| {
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        let script = "mkdir /made 2>/seen; test -e /made && echo made >>/seen; true";
        let asked = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]});
        hook(&mut bundle, "startContainer", asked);
        let container = Container::create(runtime, &bundle, "inside-filtered");
        container.must("start");
        let said = container.stdout.until_end();
        assert_eq!(said, "mkdir: can't create directory '/made': Operation not supported\n");
    });
}

/// The hook is there, too, before anybody could be killed for loading one more filter.
#[test]
fn a_hook_in_the_container_runs_under_a_filter_that_kills() {
    on_both(&["cat", "/seen"], |runtime, mut bundle| {
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["seccomp"], "action": "SCMP_ACT_KILL_PROCESS"}],
        });
        let asked = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo hook >/seen"], "env": ["PATH=/bin"]});
        hook(&mut bundle, "startContainer", asked);
        let container = Container::create(runtime, &bundle, "inside-killed");
        container.must("start");
        assert_eq!(container.stdout.until_end(), "hook\n");
    });
}

#[test]
fn a_hook_in_the_container_has_no_way_to_the_host() {
    // Alone: it is ours that forbids vsock, where the spec has no filter at all.
    on_kata(&["cat", "/seen"], |kata, mut bundle| {
        let script = "grep Seccomp: /proc/self/status >/seen";
        let asked = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]});
        hook(&mut bundle, "startContainer", asked);
        let container = Container::create(kata, &bundle, "inside-unconfined");
        container.must("start");
        assert_eq!(container.stdout.until_end(), "Seccomp:\t2\n");
    });
}

#[test]
fn a_hook_in_the_container_that_fails_fails_the_start() {
    on_both(&["sh", "-c", "touch /ran"], |runtime, mut bundle| {
        let failing = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]});
        hook(&mut bundle, "startContainer", failing);
        let container = Container::create(runtime, &bundle, "inside-fails");
        let started = container.call(&["start"]);
        if runtime.is_oracle() {
            // runc's init says so, and nobody hears it.
            container.stderr.until_has("hook #0");
        } else {
            let words = ["error running startContainer hook #0: exit status 3", "stderr: why"];
            started.assert_one_line(&words);
        }
        assert_ne!(container.wait().0, 0);
        assert_eq!(container.status(), "stopped");
        assert!(!bundle.root().file("/ran").exists());
        container.must("delete");
    });
}

#[test]
fn a_hook_that_fails_fails_create_and_poststop_follows() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        on_both(FOREVER, |runtime, mut bundle| {
            hook(&mut bundle, kind, shell("echo out; echo why >&2; exit 3"));
            note(&mut bundle, "poststop");
            let id = format!("fails-{kind}-{}", std::process::id());
            let created = create(runtime, &bundle, &id);
            let said = created.stderr();
            assert_eq!(created.code, 1, "{said}");
            assert!(said.contains("exit status 3, stdout: out"), "{said}");
            assert_eq!(order(&bundle), ["poststop"]);
            assert_eq!(noted(&bundle, "poststop")["status"], "stopped");
            assert_eq!(runtime.call(&["list", "--quiet"]).stdout(), "");
            assert_eq!(runtime.call(&["delete", "--force", &id]).code, 0);
            assert_eq!(order(&bundle).len(), 1, "poststop has run once");
            if !runtime.is_oracle() {
                let words = format!("error running {kind} hook #0: exit status 3, stdout: out");
                created.assert_one_line(&[&words, "stderr: why"]);
                assert_eq!(Leftovers::holders(&runtime.state()), Vec::<String>::new());
            }
        });
    }
}

#[test]
fn a_hook_that_hangs_is_ended_at_its_timeout() {
    on_both(FOREVER, |runtime, mut bundle| {
        let mut hanging = shell("exec sleep 1000");
        hanging["timeout"] = json!(1);
        hook(&mut bundle, "createRuntime", hanging);
        let created = create(runtime, &bundle, &format!("hangs-{}", std::process::id()));
        assert_eq!(created.code, 1);
        let said = created.stderr();
        assert!(said.contains("hook ran past specified timeout of 1.0s"), "{said}");
        assert!(created.took < SOON, "{:?}", created.took);
    });
}

#[test]
fn a_hook_that_writes_megabytes_or_leaves_a_daemon_does_no_harm() {
    on_kata(FOREVER, |runtime, mut bundle| {
        let daemon = bundle.file("daemon");
        let script = format!(
            "sleep 1000 & echo $! > {}; head -c 50000000 /dev/zero; head -c 50000000 /dev/zero >&2",
            daemon.display()
        );
        hook(&mut bundle, "createRuntime", shell(&script));
        let started = Instant::now();
        let container = Container::create(runtime, &bundle, "megabytes");
        assert!(started.elapsed() < SOON);
        let daemon = fs::read_to_string(daemon).unwrap();
        let daemon = Pid::from_raw(daemon.trim().parse().unwrap()).unwrap();
        kill_process(daemon, Signal::KILL).expect("the daemon lives on, as its hook wanted");
        container.must("start");
    });
}

#[test]
fn what_fails_after_the_start_is_a_warning() {
    on_kata(FOREVER, |runtime, mut bundle| {
        bundle.config["hooks"]["poststart"] = json!([shell("exit 1"), shell("exit 2")]);
        hook(&mut bundle, "poststop", shell("exit 3"));
        let container = Container::create(runtime, &bundle, "warns");
        let started = container.call(&["start"]);
        assert_eq!(started.code, 0);
        for words in ["poststart hook #0: exit status 1", "poststart hook #1: exit status 2"] {
            assert!(started.stderr().contains(words), "{}", started.stderr());
        }
        assert_eq!(container.status(), "running");
        let deleted = container.call(&["delete", "--force"]);
        assert_eq!(deleted.code, 0);
        assert!(deleted.stderr().contains("poststop hook #0: exit status 3"));
    });
}

#[test]
fn a_create_that_is_killed_takes_its_hook_along_and_poststop_can_still_run() {
    on_kata(FOREVER, |runtime, mut bundle| {
        let told = bundle.file("hook-pid");
        mkfifoat(CWD, &told, Mode::RUSR | Mode::WUSR).unwrap();
        let script = format!("echo $$ > {}; exec sleep 1000", told.display());
        hook(&mut bundle, "createRuntime", shell(&script));
        note(&mut bundle, "poststop");
        let id = format!("killed-{}", std::process::id());
        let command = runtime.command(&["create", "--bundle", bundle.path(), &id]);
        let creating = Running::start(command);
        let pid = fs::read_to_string(told).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        let hook = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(creating.pid(), Signal::KILL).unwrap();
        assert_eq!(creating.finish().code, 137);
        let soon = Timespec::try_from(SOON).unwrap();
        let ended = poll(&mut [PollFd::new(&hook, PollFlags::IN)], Some(&soon)).unwrap();
        assert_eq!(ended, 1, "the hook goes on");
        assert_eq!(order(&bundle), Vec::<String>::new());
        assert_eq!(runtime.call(&["delete", "--force", &id]).code, 0);
        assert_eq!(order(&bundle), ["poststop"]);
        assert_eq!(Leftovers::holders(&runtime.state()), Vec::<String>::new());
        assert!(!runtime.state().join(id).exists());
    });
}
