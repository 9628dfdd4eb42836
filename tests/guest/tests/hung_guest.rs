//! A guest that hangs answers nobody: whoever asks hears which of all it is that hangs, soon, and what was given up does not run later.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use kata_guest_tests::{Bundle, Container, HostProcess, Kata, busybox, ceiling};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// 30 s until an exec is given up, and as much again for a loaded machine; it was 120 s.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_call_says_that_it_is_the_guest_and_an_exec_given_up_never_runs() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "hung-guest");
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    let done = container.exec(&["sleep", "2000"], b"");
    assert_eq!(done.code, 255);
    for words in ["the guest did not answer exec_process within 30 s", "kata.vmmPid"] {
        assert!(done.stderr().contains(words), "{}", done.stderr());
    }
    assert!(done.took < SOON, "{:?}", done.took);
    said_of_guest(&container, "does not answer");
    for call in [&["ps"][..], &["update", "--pids-limit", "99"]] {
        let done = container.call(call);
        assert_eq!(done.code, 1, "{call:?}");
        done.assert_one_line(&["answer", "kata.vmmPid"]);
        // Nobody waits long for a guest that is known to be silent.
        assert!(done.took < SOON / 2, "{call:?}: {:?}", done.took);
    }
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    said_of_guest(&container, "answers");
    // Asked for later, so made later than what was given up.
    assert_eq!(container.exec(&["true"], b"").code, 0);
    await_absence(&container, "sleep 2000");
    a_pause_given_up_is_taken_back(&container);
}

#[test]
fn a_guest_that_hangs_while_its_vmm_runs_is_ended() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    bundle.config["annotations"] = json!({"io.katacontainers.guest.silence_s": "10"});
    bundle.write();
    let container = Container::started(&kata, &bundle, "hung-alone");
    let frozen = Frozen::processor(&kata, &container.id);
    // One call that hears nothing; the others are nobody's.
    assert_eq!(container.call(&["events", "--stats"]).code, 1);
    said_of_guest(&container, "does not answer");
    let (code, _) = container.wait();
    assert_ne!(code, 0);
    let state = container.state();
    assert_eq!(state["kata"]["ended"]["cause"], "guest_silent", "{state}");
    drop(frozen);
    container.must("delete");
}

/// The thread of a VMM that runs its guest's only processor, kept from running; the others go on. Dropping it lets it run.
struct Frozen(PathBuf);

impl Frozen {
    fn processor(kata: &Kata, id: &str) -> Self {
        let pid = kata.host_pid(id, "vmmPid");
        let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        // It has booted the guest: no other one has worked so much.
        let threads = entries.map(|entry| entry.unwrap().path());
        let thread = threads.max_by_key(|thread| worked(thread)).unwrap();
        await_rest(&thread);
        let legacy = Path::new("/sys/fs/cgroup/freezer");
        let (group, members) = if legacy.exists() {
            (legacy.join(format!("kata-hung-{pid}")), "tasks")
        } else {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let own = groups.trim().strip_prefix("0::/").unwrap();
            (Path::new("/sys/fs/cgroup").join(own).join("hung"), "cgroup.threads")
        };
        fs::create_dir(&group).unwrap();
        let frozen = Self(group);
        if members == "cgroup.threads" {
            fs::write(frozen.0.join("cgroup.type"), "threaded").unwrap();
        }
        let number = thread.file_name().unwrap().to_str().unwrap();
        fs::write(frozen.0.join(members), number).unwrap();
        frozen.turn("FROZEN", "1");
        frozen
    }

    fn turn(&self, first: &str, second: &str) {
        let written = fs::write(self.0.join("freezer.state"), first);
        written.or_else(|_| fs::write(self.0.join("cgroup.freeze"), second)).unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.0.exists() {
            self.turn("THAWED", "0");
        }
        let deadline = Instant::now() + SOON;
        while let Err(error) = fs::remove_dir(&self.0) {
            assert!(error.kind() == std::io::ErrorKind::NotFound || Instant::now() < deadline);
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
        }
    }
}

/// Waits until a thread rests, as when its guest does: working it may hold a lock that the others need.
fn await_rest(thread: &Path) {
    let deadline = Instant::now() + ceiling(SOON);
    let mut rested = 0;
    while rested < 50 {
        assert!(Instant::now() < deadline, "the guest never rests");
        let before = worked(thread);
        std::thread::sleep(Duration::from_millis(10));
        rested = if worked(thread) == before { rested + 1 } else { 0 };
    }
}

/// User time of a thread, in ticks.
fn worked(thread: &Path) -> u64 {
    let stat = fs::read_to_string(thread.join("stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    rest.split(' ').nth(11).unwrap().parse().unwrap()
}

/// Waits until the state says so.
fn said_of_guest(container: &Container, words: &str) {
    let deadline = Instant::now() + ceiling(SOON);
    while container.state()["kata"]["guest"] != words {
        assert!(Instant::now() < deadline, "{}", container.state()["kata"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_process_that_is_killed_while_it_starts_ends_alone() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "killed-early");
    let shim = kata.host_pid(&container.id, "shimPid");
    let descriptors = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = descriptors();
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    let mut command = kata.command(&["exec", &container.id, "sleep", "3000"]);
    let mut exec = command.stdin(Stdio::null()).spawn().unwrap();
    // A connection, and the end of a monitor that came by it: the shim asks the guest.
    let deadline = Instant::now() + SOON;
    while descriptors() < before + 2 {
        assert!(Instant::now() < deadline, "the shim hears nothing");
    }
    kill_process(only_child(exec.id()), Signal::KILL).unwrap();
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    assert_eq!(exec.wait().unwrap().code(), Some(137));
    assert_eq!(container.exec(&["true"], b"").code, 0);
    assert_eq!(container.status(), "running");
    await_absence(&container, "sleep 3000");
}

/// The child of a process that has one.
fn only_child(pid: u32) -> Pid {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

/// Waits until no process of the container has this command.
fn await_absence(container: &Container, command: &str) {
    let deadline = Instant::now() + SOON;
    let runs_on = || {
        let listed = container.call(&["ps"]);
        assert_eq!(listed.code, 0, "{}", listed.stderr());
        String::from_utf8_lossy(&listed.stdout).contains(command)
    };
    while runs_on() {
        assert!(Instant::now() < deadline, "{command} runs on");
    }
}

fn a_pause_given_up_is_taken_back(container: &Container) {
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    let done = container.call(&["pause"]);
    assert_eq!(done.code, 1);
    done.assert_one_line(&["the guest did not answer pause_container within 30 s", "kata.vmmPid"]);
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    // Refused in a paused container, and held up in a frozen one.
    assert_eq!(container.exec(&["true"], b"").code, 0);
    for verb in ["pause", "resume"] {
        assert_eq!(container.call(&[verb]).code, 0, "{verb}");
    }
}
