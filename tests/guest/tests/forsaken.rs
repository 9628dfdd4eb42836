//! Sandboxes that nobody comes back for take themselves away, and what is asked of them later is answered as before.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use kata_guest_tests::{
    Bundle, Container, Kata, Leftovers, Running, busybox, ceiling, cgroups_named, unique,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::listen,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};
use serde_json::{Value, json};

/// A configuration by which a shim outlives its container for so many seconds.
fn lingering(seconds: u32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = format!("[runtime]\nlinger_s = {seconds}\n");
    fs::write(directory.path().join("config.toml"), text).unwrap();
    directory
}

fn create<'a>(kata: &'a Kata, bundle: &Bundle, id: &str, seconds: u32) -> Container<'a> {
    let configuration = lingering(seconds);
    Container::create_with(kata, bundle, id, |command| {
        command.arg("--config").arg(configuration.path());
    })
}

fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits for the end of a process that is not ours.
fn await_end(what: &str, process: &OwnedFd) {
    let timeout = Timespec::try_from(ceiling(Duration::from_secs(90))).unwrap();
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_ne!(ended, 0, "the {what} is still there");
}

fn assert_only_the_record_is_left(kata: &Kata, id: &str, host: &[i32]) {
    for pid in host {
        Leftovers::assert_dead(*pid);
    }
    assert_eq!(cgroups_named(id), Vec::<String>::new(), "control groups");
    let directory = kata.state().join(id);
    assert!(directory.join("state.json").exists());
    assert!(!directory.join("ledger").exists(), "nothing is left to be taken away");
    assert_eq!(Leftovers::holders(&directory), Vec::<String>::new());
}

#[test]
fn a_shim_ends_when_nobody_deletes_its_container() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sh", "-c", "read line; exit 7"]);
    let mut container = create(&kata, &bundle, "undeleted", 1);
    container.must("start");
    let host = ["shimPid", "vmmPid", "proxyPid"].map(|which| kata.host_pid(&container.id, which));
    let shim = pidfd(host[0]);
    container.close_stdin();
    assert_eq!(container.wait().0, 7);
    let before = container.state();
    await_end("shim", &shim);
    assert_only_the_record_is_left(&kata, &container.id, &host);
    assert_eq!(container.state(), before);
    assert_eq!(before["kata"]["ended"]["code"], 7);
    let again = kata.call(&["create", "--bundle", bundle.path(), &container.id]);
    again.assert_one_line(&["container with given ID already exists"]);
    container.must("delete");
    assert!(!kata.state().join(&container.id).exists());
}

#[test]
fn a_shim_that_ends_spares_who_has_its_group_by_now() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["cat"]);
    // Where there has been no such group, the first container has made it, and takes it away.
    let group = format!("forsaken-{}", std::process::id());
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{group}"));
    bundle.write();
    let mut first = create(&kata, &bundle, "group-first", 5);
    let shim = pidfd(kata.host_pid(&first.id, "shimPid"));
    first.must("start");
    first.close_stdin();
    assert_eq!(first.wait().0, 0);
    let mut second = create(&kata, &bundle, "group-second", 3600);
    second.must("start");
    await_end("shim", &shim);
    assert_eq!(second.state()["status"], "running");
    second.close_stdin();
    assert_eq!(second.wait().0, 0);
    drop((first, second));
    // The second has found its group there, so it was not its own.
    for path in cgroups_named(&group) {
        fs::remove_dir(path).unwrap();
    }
}

/// Whatever is asked of a container that has ended; last of all what takes it away.
const ASKED: &[&[&str]] = &[
    &["state", "ID"],
    &["list"],
    &["start", "ID"],
    &["kill", "ID"],
    &["kill", "ID", "0"],
    &["kill", "ID", "99"],
    &["kill", "ID", "NOPE"],
    &["kill", "--all", "ID", "KILL"],
    &["exec", "ID", "true"],
    &["exec", "ID"],
    &["exec", "--detach", "ID", "true"],
    &["pause", "ID"],
    &["resume", "ID"],
    &["update", "--pids-limit", "9", "ID"],
    &["ps", "ID"],
    &["ps", "--format", "json", "ID"],
    &["create", "--bundle", "BUNDLE", "ID"],
    &["run", "--bundle", "BUNDLE", "ID"],
    &["delete", "ID"],
    &["delete", "ID"],
    &["delete", "--force", "ID"],
];

#[test]
fn without_its_shim_a_container_answers_in_the_same_words() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sh", "-c", "exit 3"]);
    let answers = [("with", 3600), ("sans", 1)].map(|(id, linger)| {
        let kata = Kata::installed().unwrap();
        let container = create(&kata, &bundle, id, linger);
        let shim = pidfd(kata.host_pid(&container.id, "shimPid"));
        container.must("start");
        assert_eq!(container.wait().0, 3);
        if id == "sans" {
            await_end("shim", &shim);
        }
        let told = container.state();
        let own = [told["created"].as_str().unwrap().to_owned(), container.id.clone()];
        ASKED.iter().map(|command| answer(&kata, command, (&own, &bundle))).collect::<Vec<_>>()
    });
    for (with, without) in answers[0].iter().zip(&answers[1]) {
        assert_eq!(with, without);
    }
    assert_eq!(answers[0].len(), answers[1].len());
}

/// A command with its exit code, output and errors, without what is one container's own.
fn answer(
    kata: &Kata,
    command: &[&str],
    ([created, id], bundle): (&[String; 2], &Bundle),
) -> (String, i32, String, String) {
    let words = command.iter().map(|word| match *word {
        "ID" => id,
        "BUNDLE" => bundle.path(),
        word => word,
    });
    let done = kata.call(&words.collect::<Vec<_>>());
    let general = |text: String| {
        let state = kata.state();
        let text = text.replace(state.to_str().unwrap(), "ROOT").replace(id, "ID");
        let own = ["Pid\":", "\"at\":"];
        let lines = text.replace(created, "CREATED");
        let lines = lines.lines().filter(|line| !own.iter().any(|word| line.contains(word)));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    (command.join(" "), done.code, general(done.stdout()), general(done.stderr()))
}

#[test]
fn a_directory_that_is_removed_under_the_shim_keeps_nothing_from_going() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = create(&kata, &bundle, "undermined", 1);
    container.must("start");
    let host = ["shimPid", "vmmPid", "proxyPid"].map(|which| kata.host_pid(&container.id, which));
    let shim = pidfd(host[0]);
    assert_ne!(cgroups_named(&container.id), Vec::<String>::new(), "what is to go is there");
    fs::remove_dir_all(kata.state().join(&container.id)).unwrap();
    // All that an engine has then is the pid.
    pidfd_send_signal(pidfd(container.pid), Signal::KILL).unwrap();
    await_end("shim", &shim);
    host.into_iter().for_each(Leftovers::assert_dead);
    assert_eq!(cgroups_named(&container.id), Vec::<String>::new(), "control groups");
}

/// Waits for something that no event tells of.
fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + ceiling(Duration::from_secs(60));
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < until, "{what} has not happened");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A creation that has made its container, and can't tell anybody: the socket for the pidfd takes no more connections.
struct Mute {
    creator: Running,
    shim: OwnedFd,
    monitor: OwnedFd,
    id: String,
    _directory: tempfile::TempDir,
    _full: (UnixListener, Vec<UnixStream>),
}

impl Mute {
    fn begin(kata: &Kata, bundle: &Bundle, verb: &str, id: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pidfd");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, 0).unwrap();
        let full = vec![UnixStream::connect(&path).unwrap()];
        let id = unique(id);
        let mut command = kata.command(&[verb, "--bundle", bundle.path(), "--pidfd-socket"]);
        command.arg(&path).arg(&id);
        let creator = Running::start(command);
        let state = eventually("the creation", || {
            let state: Value = serde_json::from_slice(&kata.call(&["state", &id]).stdout).ok()?;
            (state["status"] == "created").then_some(state)
        });
        let pid = |pid: &Value| pidfd(i32::try_from(pid.as_i64().unwrap()).unwrap());
        let (shim, monitor) = (pid(&state["kata"]["shimPid"]), pid(&state["pid"]));
        Self { creator, shim, monitor, id, _directory: directory, _full: (listener, full) }
    }

    /// Kills the creator, and waits until what it has made has ended.
    fn kill(self) -> String {
        kill_process(self.creator.pid(), Signal::KILL).unwrap();
        drop(self.creator);
        await_end("monitor", &self.monitor);
        await_end("shim", &self.shim);
        self.id
    }
}

fn assert_nothing_is_left(kata: &Kata, id: &str) {
    assert!(!kata.state().join(id).exists(), "the directory is left");
    assert_eq!(cgroups_named(id), Vec::<String>::new(), "control groups");
}

#[test]
fn a_container_that_nobody_was_told_of_is_taken_back() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    for verb in ["create", "run"] {
        let id = Mute::begin(&kata, &bundle, verb, &format!("untold-{verb}")).kill();
        assert_nothing_is_left(&kata, &id);
        assert!(bundle.root().file("bin/busybox").exists(), "the files are their owner's");
        assert_eq!(kata.call(&["delete", "--force", &id]).code, 0, "it is an engine's next word");
    }
}

#[test]
fn a_container_that_was_started_though_nobody_was_told_of_it_stays() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let mute = Mute::begin(&kata, &bundle, "create", "untold-started");
    assert_eq!(kata.call(&["start", &mute.id]).code, 0);
    kill_process(mute.creator.pid(), Signal::KILL).unwrap();
    drop(mute.creator);
    let done = kata.call(&["exec", &mute.id, "echo", "here"]);
    assert_eq!((done.code, done.stdout().as_str()), (0, "here\n"), "{}", done.stderr());
    assert_eq!(kata.state_of(&mute.id)["status"], "running");
}

#[test]
fn whoever_deletes_what_was_taken_back_runs_the_hooks_that_are_owed() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let told = bundle.file("stopped");
    let script = format!("cat >{}", told.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    bundle.config["hooks"] = json!({"poststop": hook});
    bundle.write();
    let id = Mute::begin(&kata, &bundle, "create", "untold-hooks").kill();
    assert!(!told.exists());
    assert_eq!(kata.state_of(&id)["status"], "stopped");
    assert_eq!(cgroups_named(&id), Vec::<String>::new(), "control groups");
    assert_eq!(kata.call(&["delete", &id]).code, 0);
    assert!(told.exists(), "poststop has run");
    assert_nothing_is_left(&kata, &id);
}

/// A `create` that waits in a hook for somebody to open `gate`, and its shim.
fn create_at_hook(kata: &Kata, bundle: &mut Bundle, id: &str, fault: &str) -> (Running, OwnedFd) {
    let (gate, waits) = (bundle.file("gate"), bundle.file("waits"));
    fs::remove_file(&waits).ok();
    let made = Command::new("mkfifo").arg(&gate).status().unwrap();
    assert!(made.success() || gate.exists());
    let script = format!("touch {}; read line <{}", waits.display(), gate.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{script}; exit 0")]}]);
    bundle.config["hooks"] = json!({"createRuntime": hook});
    bundle.write();
    let mut command = kata.command(&["create", "--bundle", bundle.path(), id]);
    command.env("KATA_FAULT", fault);
    let creator = Running::start(command);
    eventually("the hook", || waits.exists().then_some(()));
    let shim = shim_of(creator.pid());
    (creator, pidfd(shim))
}

fn shim_of(creator: Pid) -> i32 {
    let pid = creator.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    let is_shim = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("containerd-shim")
    };
    children.into_iter().find(is_shim).unwrap()
}

#[test]
fn a_creator_that_is_killed_before_or_amid_its_request_leaves_nothing() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    // Before it has asked; when its request is on the way, and will succeed or fail.
    for (number, fault) in ["", "none", "MakeCgroup=fail"].into_iter().enumerate() {
        let id = format!("amid-{number}-{}", std::process::id());
        let (creator, shim) = create_at_hook(&kata, &mut bundle, &id, fault);
        let creator_pid = creator.pid().as_raw_nonzero().get();
        pidfd_send_signal(&shim, Signal::STOP).unwrap();
        if !fault.is_empty() {
            fs::write(bundle.file("gate"), "go\n").unwrap();
            eventually("the request", || waits_for_answer(creator_pid).then_some(()));
        }
        kill_process(creator.pid(), Signal::KILL).unwrap();
        drop(creator);
        pidfd_send_signal(&shim, Signal::CONT).unwrap();
        await_end("shim", &shim);
        assert_nothing_is_left(&kata, &id);
        assert!(bundle.root().file("bin/busybox").exists(), "the files are their owner's");
        fs::remove_file(bundle.file("gate")).unwrap();
    }
}

/// Whether a process is in the middle of recvmsg(2), of which `/proc` tells the number.
fn waits_for_answer(pid: i32) -> bool {
    const RECVMSG: &str = if cfg!(target_arch = "x86_64") { "47 " } else { "212 " };
    let call = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("syscall"));
    call.is_ok_and(|call| call.starts_with(RECVMSG))
}
