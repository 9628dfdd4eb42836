//! One container from `create` to `delete`, as an engine holds it: its stdio, and its pid as a child.

use std::{
    fs,
    io::pipe,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal,
        set_child_subreaper, waitid,
    },
};
use serde_json::Value;

use crate::{
    Bundle, Capture, Kata, Leftovers, Output, capture, ceiling, cgroups_named, run, unique,
};

/// A container that was created. Dropping it deletes it with force.
#[derive(Debug)]
pub struct Container<'a> {
    /// What it was made by.
    pub kata: &'a Kata,
    /// Its id.
    pub id: String,
    /// The process that stands for it on the host.
    pub pid: i32,
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: Capture,
    /// Its standard error.
    pub stderr: Capture,
}

/// The processes of a sandbox on the host.
#[derive(Debug, Clone, Copy)]
pub enum HostProcess {
    /// The one that stands for the container.
    Monitor,
    /// The one that answers.
    Shim,
    /// QEMU.
    Vmm,
    /// The devices.
    Proxy,
}

/// What there is of a sandbox on the host, to be looked for afterwards.
#[derive(Debug)]
pub struct Traces {
    pids: Vec<i32>,
    directory: PathBuf,
    id: String,
}

impl<'a> Container<'a> {
    /// `create`s a container in `bundle` with pipes for stdio. Its id is told apart from every other test's.
    pub fn create(kata: &'a Kata, bundle: &Bundle, id: &str) -> Self {
        Self::create_with(kata, bundle, id, |_| ())
    }

    /// The same, with a change to the command.
    pub fn create_with(
        kata: &'a Kata,
        bundle: &Bundle,
        id: &str,
        change: impl FnOnce(&mut Command),
    ) -> Self {
        become_subreaper();
        let id = unique(id);
        let pid_file = bundle.file("pid");
        let mut command = kata.command(&["create", "--bundle", bundle.path(), "--pid-file"]);
        command.arg(&pid_file);
        let ((stdin, our_stdin), (our_stdout, stdout)) = (pipe().unwrap(), pipe().unwrap());
        let (our_stderr, stderr) = pipe().unwrap();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        change(&mut command);
        command.arg(&id);
        let (stdout, stderr) = (Capture::of(our_stdout.into()), Capture::of(our_stderr.into()));
        let status = command.status().unwrap();
        // Our ends of the container's pipes must not keep them open.
        drop(command);
        assert!(status.success(), "create: {status}, {}", stderr.text());
        let pid = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        Self { kata, id, pid, pidfd, stdin: Some(our_stdin.into()), stdout, stderr }
    }

    /// Creates and starts.
    pub fn started(kata: &'a Kata, bundle: &Bundle, id: &str) -> Self {
        let container = Self::create(kata, bundle, id);
        container.must("start");
        container
    }

    /// Calls a verb that takes the id last.
    pub fn call(&self, verb: &[&str]) -> Output {
        self.kata.call(&[verb, &[&self.id]].concat())
    }

    /// The same for one that has to succeed.
    pub fn must(&self, verb: &str) {
        let done = self.call(&[verb]);
        assert_eq!(done.code, 0, "{verb}: {}", done.stderr());
    }

    /// Sends a signal by its name or number.
    pub fn kill(&self, signal: &str) -> Output {
        self.kata.call(&["kill", &self.id, signal])
    }

    /// Runs another process in it, with `input`.
    pub fn exec(&self, arguments: &[&str], input: &[u8]) -> Output {
        run(self.kata.command(&[&["exec", &self.id], arguments].concat()), input)
    }

    /// Runs a script in it until it succeeds: for what the guest is told of by events.
    pub fn until(&self, script: &str) -> Output {
        let waiting = format!(
            "for i in $(seq 300); do ({script}) && exit 0; sleep 0.1; done; ip address; ip route; exit 1"
        );
        let output = self.exec(&["sh", "-c", &waiting], b"");
        assert_eq!(output.code, 0, "{script}: {}{}", output.stdout(), output.stderr());
        output
    }

    /// `state`.
    pub fn state(&self) -> Value {
        self.kata.state_of(&self.id)
    }

    /// Waits until `state` says this of its network, which it tells as soon as the record of the container is a new one.
    pub fn network_told(&self, piece: &str) {
        let records = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        let directory = self.kata.state().join(&self.id);
        inotify::add_watch(&records, directory, inotify::WatchFlags::MOVED_TO).unwrap();
        let deadline = Instant::now() + ceiling(Duration::from_secs(60));
        loop {
            let note = self.state()["kata"]["network"].to_string();
            if note.contains(piece) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let changed = poll(&mut [PollFd::new(&records, PollFlags::IN)], Some(&left)).unwrap();
            assert_ne!(changed, 0, "no {piece:?} in {note}");
            rustix::io::read(&records, &mut [0; 4096]).unwrap();
        }
    }

    /// `status` of `state`.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// Gives it input.
    pub fn write(&self, input: &[u8]) {
        capture::write(self.stdin.as_ref().unwrap(), input);
    }

    /// Closes its input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to one of its processes on the host.
    pub fn signal_host(&self, which: HostProcess, signal: Signal) {
        let pid = match which {
            HostProcess::Monitor => self.pid,
            HostProcess::Shim => self.kata.host_pid(&self.id, "shimPid"),
            HostProcess::Vmm => self.kata.host_pid(&self.id, "vmmPid"),
            HostProcess::Proxy => self.kata.host_pid(&self.id, "proxyPid"),
        };
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(pidfd, signal).unwrap();
    }

    /// Waits for the end of the process that stands for it, as its parent; returns the code and how long it took.
    pub fn wait(&self) -> (i32, Duration) {
        let started = Instant::now();
        let timeout = Timespec { tv_sec: 120, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_ne!(ended, 0, "container {} did not end: {}", self.id, self.state());
        let took = started.elapsed();
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = status.unwrap().unwrap();
        let signaled = || 128 + status.terminating_signal().unwrap();
        (status.exit_status().unwrap_or_else(signaled), took)
    }

    /// Notes what there is of it.
    pub fn traces(&self) -> Traces {
        let state = self.state();
        let host = ["shimPid", "vmmPid", "proxyPid"];
        let host = host.iter().filter_map(|which| state["kata"][which].as_i64());
        let mut pids: Vec<i32> = host.map(|pid| i32::try_from(pid).unwrap()).collect();
        pids.push(self.pid);
        Traces { pids, directory: self.kata.state().join(&self.id), id: self.id.clone() }
    }

    /// Deletes it with force and asserts that nothing is left.
    pub fn remove(self, traces: &Traces) {
        let deleted = self.call(&["delete", "--force"]);
        assert_eq!(deleted.code, 0, "delete --force: {}", deleted.stderr());
        traces.assert_gone();
    }

    /// The same of one that runs still: it notes what there is by itself.
    pub fn remove_running(self) {
        let traces = self.traces();
        self.remove(&traces);
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // What a test has not deleted it is done with, however the container is doing.
        self.call(&["delete", "--force"]);
    }
}

impl Traces {
    /// Asserts that nothing is left of the sandbox.
    pub fn assert_gone(&self) {
        for pid in &self.pids {
            Leftovers::assert_dead(*pid);
        }
        assert!(!self.directory.exists(), "{} is left", self.directory.display());
        assert_eq!(cgroups_named(&self.id), Vec::<String>::new(), "control groups");
    }
}

/// `create` ends at once, and whoever it leaves behind is to be ours, as it is an engine's.
fn become_subreaper() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_child_subreaper(Some(getpid())).unwrap());
}

/// The namespace of a kind that a process is in.
pub fn namespace(pid: i32, kind: &str) -> PathBuf {
    fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns").join(kind)).unwrap()
}
