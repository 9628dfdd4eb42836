//! What is left on the host: one test, alone in its program, because it looks at the whole host.
#![allow(clippy::unwrap_used)]

use kata_guest_tests::{Kata, Leftovers, Root, Running, busybox};
use rustix::process::{Signal, kill_process};

#[test]
fn nothing_is_left_of_any_run() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    for (what, scenario) in SCENARIOS {
        println!("{what}");
        let before = Leftovers::now();
        scenario(&kata, &root);
        Leftovers::assert_none_since(&before);
    }
}

type Scenario = fn(&Kata, &Root);

const SCENARIOS: &[(&str, Scenario)] = &[
    ("a run", |kata, root| {
        let done = kata.shell(root, "exit 3");
        assert_eq!(done.code, 3, "{}", done.stderr());
    }),
    ("a run of what is not there", |kata, root| {
        let done = kata.call(&["run", "--rootfs", root.path(), "--", "no-such-program"]);
        assert_eq!(done.code, 127, "{}", done.stderr());
    }),
    ("a run that fails half-way up", |kata, root| {
        let mut command = kata.command(&["run", "--rootfs", root.path(), "--", "sh"]);
        command.env("KATA_FAULT", "AwaitAgent=fail");
        let done = kata_guest_tests::run(command, b"");
        done.assert_one_line(&["AwaitAgent"]);
    }),
    ("a run whose container is killed", |kata, root| {
        let running = start(kata, root, "killed");
        let killed = kata.call(&["kill", "killed", "KILL"]);
        assert_eq!(killed.code, 0, "{}", killed.stderr());
        assert_eq!(running.finish().code, 137);
    }),
    ("a run that is interrupted", |kata, root| {
        let running = start(kata, root, "interrupted");
        kill_process(running.pid(), Signal::INT).unwrap();
        assert_eq!(running.finish().code, 5);
    }),
    ("a run that is killed", |kata, root| {
        let running = start(kata, root, "orphan");
        kill_process(running.pid(), Signal::KILL).unwrap();
        let deleted = kata.call(&["delete", "--force", "orphan"]);
        assert_eq!(deleted.code, 0, "{}", deleted.stderr());
        assert_eq!(running.finish().code, 137);
    }),
];

/// A run in the foreground that has said that it is there.
fn start(kata: &Kata, root: &Root, id: &str) -> Running {
    let script = "trap 'exit 5' INT; echo ready; while :; do read -t 1 line; done";
    let run = ["run", "--rootfs", root.path(), id, "--", "sh", "-c", script];
    let running = Running::start(kata.command(&run));
    running.stdout.until_has("ready");
    running
}
