//! The life of a container by OCI's verbs. What holds for runc, too, is asked of runc as well.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::Duration,
};

use kata_guest_tests::{Bundle, Container, HostProcess, Kata, busybox, ceiling, namespace, within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Runs a claim on Kata and on runc, each with a root and a bundle of its own.
fn on_both(args: &[&str], claim: impl Fn(&Kata, Bundle)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        claim(runtime, Bundle::new(&kata, root, args));
    }
}

/// The same on Kata alone.
fn on_kata(args: &[&str], claim: impl Fn(&Kata, Bundle)) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, args);
    claim(&kata, bundle);
}

const FOREVER: &[&str] = &["sleep", "1000"];

#[test]
fn a_created_container_has_a_live_pid() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "live-pid");
        let state = container.state();
        assert_eq!(state["status"], "created");
        assert_eq!(state["pid"], container.pid, "the pid file and state agree");
        assert_eq!(state["id"], container.id);
        assert_eq!(state["bundle"], bundle.path());
        assert!(fs::exists(format!("/proc/{}/exe", container.pid)).unwrap());
    });
}

#[test]
fn no_code_of_the_user_runs_before_start() {
    on_both(&["sh", "-c", "touch /ran; echo ran"], |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "before-start");
        assert!(!bundle.root().file("/ran").exists());
        container.must("start");
        assert_eq!(container.stdout.until_end(), "ran\n");
        assert!(bundle.root().file("/ran").exists());
    });
}

#[test]
fn output_that_the_container_closes_ends_for_the_caller_too() {
    on_both(&["sh", "-c", "echo last; exec sleep 1000 >&- 2>&-"], |runtime, bundle| {
        // The process that holds the caller's end has nothing but the container's root to open files in.
        assert!(!bundle.root().file("/dev/null").exists());
        let container = Container::started(runtime, &bundle, "closed-output");
        assert_eq!(container.stdout.until_end(), "last\n");
        assert_eq!(container.stderr.until_end(), "");
        assert_eq!(container.state()["status"], "running");
    });
}

#[test]
fn the_pid_is_in_the_cgroup_that_was_asked_for() {
    on_both(FOREVER, |runtime, mut bundle| {
        let path = format!("/kata-test-{}/group", std::process::id());
        bundle.config["linux"]["cgroupsPath"] = json!(path);
        bundle.write();
        let container = Container::create(runtime, &bundle, "cgroup");
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
        let memory =
            groups.lines().find(|line| line.contains(":memory:") || line.starts_with("0::"));
        assert!(memory.unwrap().ends_with(&path), "{groups}");
    });
}

#[test]
fn the_pid_is_in_a_network_namespace_of_its_own() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "netns");
        let own = i32::try_from(std::process::id()).unwrap();
        assert_ne!(namespace(container.pid, "net"), namespace(own, "net"));
    });
}

#[test]
fn a_started_container_runs_and_a_stopped_one_is_stopped() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "stop");
        assert_eq!(container.status(), "running");
        assert_eq!(container.kill("KILL").code, 0);
        assert_eq!(container.wait().0, 137);
        assert_eq!(container.status(), "stopped");
        container.must("delete");
    });
}

#[test]
fn the_exit_status_of_the_pid_is_the_containers() {
    // runc's pid is the process itself, so its status is the kernel's.
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 0)] {
        on_both(&["sh", "-c", script], |runtime, bundle| {
            let container = Container::started(runtime, &bundle, "status");
            assert_eq!(container.wait().0, code, "{script}");
        });
    }
}

#[test]
fn signals_go_by_number_and_by_name() {
    let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'exit 7' TERM; echo ready; \
                  while :; do read -t 1 line; done";
    on_both(&["sh", "-c", script], |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "signals");
        container.stdout.until_has("ready");
        for (signal, heard) in [("10", "usr1"), ("USR2", "usr2")] {
            let sent = container.kill(signal);
            assert_eq!(sent.code, 0, "{}", sent.stderr());
            container.stdout.until_has(heard);
        }
        assert_eq!(container.kill("SIGTERM").code, 0);
        assert_eq!(container.wait().0, 7);
    });
}

#[test]
fn a_signal_to_the_pid_reaches_the_container() {
    let script = "trap 'echo heard; exit 9' TERM; echo ready; while :; do read -t 1 line; done";
    on_both(&["sh", "-c", script], |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "forwarded");
        container.stdout.until_has("ready");
        kill_process(Pid::from_raw(container.pid).unwrap(), Signal::TERM).unwrap();
        assert_eq!(container.wait().0, 9);
        assert_eq!(container.stdout.until_end(), "ready\nheard\n");
    });
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "unstarted");
        assert_eq!(container.kill("KILL").code, 0);
        assert_eq!(container.wait().0, 137);
        assert_eq!(container.status(), "stopped");
        container.must("delete");
    });
}

#[test]
fn exec_has_an_exit_code_of_its_own() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "exec-code");
        for (script, code) in [("exit 0", 0), ("exit 3", 3), ("sh -c 'kill -9 $$'; exit $?", 137)] {
            let done = container.exec(&["sh", "-c", script], b"");
            assert_eq!(done.code, code, "{script}: {}", done.stderr());
        }
        assert_eq!(container.status(), "running");
    });
}

#[test]
fn exec_passes_its_input_and_both_outputs() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "exec-io");
        let done = container.exec(&["sh", "-c", "cat; echo problem >&2"], b"through\n");
        assert_eq!((done.stdout().as_str(), done.stderr().as_str()), ("through\n", "problem\n"));
    });
}

#[test]
fn exec_says_when_there_is_no_such_program() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "exec-absent");
        let done = container.exec(&["no-such-program"], b"");
        assert_eq!(done.code, 255, "{}", done.stderr());
        assert!(done.stderr().contains("executable file not found"), "{}", done.stderr());
    });
}

#[test]
fn exec_sees_the_processes_of_the_container() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "exec-ps");
        let done = container.exec(&["cat", "/proc/1/cmdline"], b"");
        assert_eq!(done.stdout(), "sleep\u{0}1000\u{0}");
    });
}

#[test]
fn exec_is_refused_where_nothing_runs() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "exec-stopped");
        assert_eq!(container.kill("KILL").code, 0);
        container.wait();
        let done = container.exec(&["sh", "-c", "exit 0"], b"");
        assert_ne!(done.code, 0);
        assert!(done.stderr().contains("stopped") || done.stderr().contains("not running"));
    });
}

#[test]
fn a_grandchild_that_holds_the_output_delays_the_end_by_the_grace_at_most() {
    on_kata(&["sh", "-c", "read line; sleep 1000 & echo done"], |kata, bundle| {
        let container = Container::started(kata, &bundle, "grandchild");
        let Some(root) = busybox() else { return };
        container.write(b"go\n");
        container.stdout.until_has("done");
        let (code, took) = container.wait();
        assert_eq!(code, 0);
        within(took, Duration::from_secs(3), (kata, &root));
    });
}

#[test]
fn a_grandchild_that_holds_an_execs_output_delays_its_end_by_the_grace_at_most() {
    on_kata(FOREVER, |kata, bundle| {
        let Some(root) = busybox() else { return };
        let container = Container::started(kata, &bundle, "exec-grandchild");
        let done = container.exec(&["sh", "-c", "sleep 1000 & echo done"], b"");
        assert_eq!((done.code, done.stdout().as_str()), (0, "done\n"));
        within(done.took, Duration::from_secs(3), (kata, &root));
        assert_eq!(container.status(), "running");
    });
}

#[test]
fn an_id_is_taken_once() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "taken");
        let again = runtime.call(&["create", "--bundle", bundle.path(), &container.id]);
        assert_ne!(again.code, 0);
        assert!(
            again.stderr().contains("already exists") || again.stderr().contains("already exist")
        );
        assert_eq!(container.status(), "created", "the first one is unharmed");
    });
}

#[test]
fn a_running_container_is_not_deleted_without_force() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "not-deleted");
        let refused = container.call(&["delete"]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr().contains("not stopped"), "{}", refused.stderr());
        assert_eq!(container.status(), "running");
        let forced = container.call(&["delete", "--force"]);
        assert_eq!(forced.code, 0, "{}", forced.stderr());
        assert_ne!(container.call(&["state"]).code, 0);
    });
}

#[test]
fn a_deleted_container_does_not_exist() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "twice");
        assert_eq!(container.kill("KILL").code, 0);
        container.wait();
        container.must("delete");
        for verb in ["delete", "state", "start"] {
            let again = container.call(&[verb]);
            assert_ne!(again.code, 0, "{verb}");
            assert!(again.stderr().contains("does not exist"), "{verb}: {}", again.stderr());
        }
        assert_eq!(container.call(&["delete", "--force"]).code, 0, "with force it is no error");
    });
}

#[test]
fn an_unknown_container_does_not_exist() {
    on_both(FOREVER, |runtime, _bundle| {
        for verb in ["state", "start", "delete", "kill"] {
            let done = runtime.call(&[verb, "nobody"]);
            assert_ne!(done.code, 0, "{verb}");
            assert!(done.stderr().contains("does not exist"), "{verb}: {}", done.stderr());
        }
    });
}

#[test]
fn a_stopped_container_takes_no_signal() {
    on_both(&["sh", "-c", "exit 0"], |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "stopped-kill");
        assert_eq!(container.wait().0, 0);
        let refused = container.kill("TERM");
        assert_ne!(refused.code, 0);
        assert!(refused.stderr().contains("container not running"), "{}", refused.stderr());
    });
}

#[test]
fn a_container_starts_once() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "once");
        let again = container.call(&["start"]);
        assert_ne!(again.code, 0);
        assert!(again.stderr().contains("cannot start"), "{}", again.stderr());
        assert_eq!(container.status(), "running");
    });
}

#[test]
fn list_shows_what_state_shows() {
    on_both(FOREVER, |runtime, bundle| {
        let container = Container::create(runtime, &bundle, "listed");
        let list = runtime.call(&["list", "--format", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
        let row = list.as_array().unwrap().iter().find(|row| row["id"] == container.id).unwrap();
        assert_eq!((&row["status"], &row["pid"]), (&json!("created"), &json!(container.pid)));
        let quiet = runtime.call(&["list", "--quiet"]);
        assert_eq!(quiet.stdout(), format!("{}\n", container.id));
        let table = runtime.call(&["list"]).stdout();
        assert!(table.starts_with("ID ") && table.contains("created"), "{table}");
    });
}

#[test]
fn a_paused_container_stands_still() {
    on_both(&["sh", "-c", "while read line; do echo $line; done"], |runtime, bundle| {
        let container = Container::started(runtime, &bundle, "paused");
        container.write(b"one\n");
        container.stdout.until_has("one\n");
        container.must("pause");
        assert_eq!(container.status(), "paused");
        assert_ne!(container.call(&["pause"]).code, 0, "a paused one can't be paused");
        container.write(b"two\n");
        // A round trip to the container's own kernel or file system, so that "two" had its time.
        assert_eq!(container.status(), "paused");
        assert_eq!(container.stdout.text(), "one\n");
        container.must("resume");
        assert_eq!(container.status(), "running");
        container.stdout.until_has("two\n");
    });
}

/// Kills a part of a sandbox, and asserts the truth, its speed, and that nothing is left.
fn losing(which: HostProcess, code: i32, cause: &str) {
    on_kata(&["sh", "-c", "echo ready; sleep 1000"], |kata, bundle| {
        let Some(root) = busybox() else { return };
        let container = Container::started(kata, &bundle, cause);
        container.stdout.until_has("ready");
        let traces = container.traces();
        container.signal_host(which, Signal::KILL);
        let (ended, took) = container.wait();
        assert_eq!(ended, code);
        within(took, Duration::from_secs(1), (kata, &root));
        assert_ended(&container, cause);
        container.remove(&traces);
    });
}

/// A killed monitor can't say that it is: whoever waited for it knows a moment before the shim does.
fn settled(container: &Container<'_>) -> serde_json::Value {
    let asked = std::time::Instant::now();
    loop {
        let state = container.state();
        if state["status"] != "running" || asked.elapsed() > ceiling(Duration::from_secs(5)) {
            return state;
        }
    }
}

fn assert_ended(container: &Container<'_>, cause: &str) {
    let state = settled(container);
    assert_eq!(state["status"], "stopped", "{state}");
    assert_eq!(state["kata"]["ended"]["cause"], cause, "{state}");
    assert_ne!(state["kata"]["ended"]["code"], 0, "{state}");
}

#[test]
fn a_killed_vmm_is_told_as_such() {
    losing(HostProcess::Vmm, 137, "vmm_killed");
}

#[test]
fn a_killed_proxy_is_told_as_such() {
    losing(HostProcess::Proxy, 137, "proxy_killed");
}

#[test]
fn a_killed_shim_is_told_as_such() {
    losing(HostProcess::Shim, 137, "shim_lost");
}

#[test]
fn a_killed_monitor_is_told_as_such() {
    losing(HostProcess::Monitor, 137, "monitor_killed");
}

/// A bundle whose program may do to the guest what it likes.
fn unleash(bundle: &mut Bundle) {
    let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_BOOT", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = all.clone();
    }
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.write();
}

#[test]
fn a_guest_kernel_panic_is_told_as_such() {
    let script = "echo ready; read line; echo c >/proc/sysrq-trigger; sleep 1000";
    on_kata(&["sh", "-c", script], |kata, mut bundle| {
        let Some(root) = busybox() else { return };
        unleash(&mut bundle);
        let container = Container::started(kata, &bundle, "panic");
        container.stdout.until_has("ready");
        let traces = container.traces();
        container.write(b"go\n");
        let (code, took) = container.wait();
        assert_eq!(code, 137);
        within(took, Duration::from_secs(1), (kata, &root));
        assert_ended(&container, "guest_panic");
        let state = container.state();
        let detail = state["kata"]["ended"]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("sysrq"), "the guest's last words: {detail:?}");
        container.remove(&traces);
    });
}

#[test]
fn a_guest_that_resets_itself_is_no_success() {
    let script = "echo ready; read line; echo b >/proc/sysrq-trigger; sleep 1000";
    on_kata(&["sh", "-c", script], |kata, mut bundle| {
        let Some(root) = busybox() else { return };
        unleash(&mut bundle);
        let container = Container::started(kata, &bundle, "reset");
        container.stdout.until_has("ready");
        let traces = container.traces();
        container.write(b"go\n");
        let (code, took) = container.wait();
        assert_eq!(code, 137);
        within(took, Duration::from_secs(1), (kata, &root));
        assert_ne!(container.state()["kata"]["ended"]["cause"], "exited");
        container.remove(&traces);
    });
}

/// Overwrites every page of the agent's program in the guest's memory: the next code that it comes to is a trap.
fn break_agent(kata: &Kata, container: &Container<'_>) {
    const PAGE: usize = 4096;
    let prefix = kata.program().ancestors().nth(2).unwrap();
    let initrd = fs::read(prefix.join("share/kata/initrd.img")).unwrap();
    let elf = initrd.windows(4).position(|bytes| bytes == b"\x7fELF").unwrap();
    let pages: HashSet<&[u8]> = initrd[elf..].chunks_exact(PAGE).collect();
    let blank = |page: &[u8]| page.iter().all(|byte| *byte == page[0]);
    let fds = format!("/proc/{}/fd", kata.host_pid(&container.id, "vmmPid"));
    let is_memory = |fd: &PathBuf| {
        fs::read_link(fd).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
    };
    let memory = fs::read_dir(fds).unwrap().flatten().map(|entry| entry.path()).find(is_memory);
    let memory = File::options().read(true).write(true).open(memory.unwrap()).unwrap();
    let (mut broken, mut page) = (0, vec![0; PAGE]);
    for offset in (0..memory.metadata().unwrap().len()).step_by(PAGE) {
        memory.read_exact_at(&mut page, offset).unwrap();
        if !blank(&page) && pages.contains(page.as_slice()) {
            memory.write_all_at(&[0xcc; PAGE], offset).unwrap();
            broken += 1;
        }
    }
    assert!(broken > 100, "{broken} pages of the agent found in the guest");
}

#[test]
fn an_agent_that_dies_is_told_as_such() {
    on_kata(&["sh", "-c", "echo ready; sleep 1000"], |kata, bundle| {
        let Some(root) = busybox() else { return };
        let container = Container::started(kata, &bundle, "agent");
        container.stdout.until_has("ready");
        let traces = container.traces();
        break_agent(kata, &container);
        // Code that has not run before, so that it is not in the emulator's own cache.
        let failed = container.exec(&["sh", "-c", "exit 0"], b"");
        assert_ne!(failed.code, 0);
        let (code, took) = container.wait();
        assert_eq!(code, 137);
        within(took, Duration::from_secs(1), (kata, &root));
        assert_ended(&container, "agent_lost");
        container.remove(&traces);
    });
}
