//! Tasks by `ctr`, below every containerd that this machine has. Each claim holds for runc too, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{
    thread,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{BUSYBOX, Containerd, KATA, RUNC, Release};
use kata_guest_tests::{Output, Terminal, run};
use rustix::process::Signal;

fn everywhere(claim: impl Fn(&Containerd, &str)) {
    for release in Release::installed().into_iter().chain(Release::later()) {
        println!("containerd of {}", release.directory().display());
        let Some(engine) = Containerd::start_release(release) else { return };
        for (_, runtime) in [RUNC, KATA] {
            claim(&engine, runtime);
        }
    }
}

/// `ctr` with these words, to its end.
fn ctr(engine: &Containerd, words: &[&str]) -> Output {
    run(engine.ctr(words), b"")
}

fn ok(engine: &Containerd, words: &[&str]) -> String {
    let output = ctr(engine, words);
    assert_eq!(output.code, 0, "{words:?}: {}", output.stderr());
    output.stdout()
}

/// The column of a task's state.
fn state(engine: &Containerd, id: &str) -> String {
    let list = ok(engine, &["task", "ls"]);
    let line = list.lines().find(|line| line.starts_with(&format!("{id} ")));
    line.unwrap_or_default().split_whitespace().last().unwrap_or_default().to_owned()
}

#[test]
fn a_task_lives_by_every_verb() {
    everywhere(|engine, runtime| {
        let script = "trap 'exit 5' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
        ok(engine, &["run", "-d", "--runtime", runtime, BUSYBOX, "t", "sh", "-c", script]);
        assert_eq!(state(engine, "t"), "RUNNING");
        let exec = |id: &str, script: &str| {
            ctr(engine, &["task", "exec", "--exec-id", id, "t", "sh", "-c", script])
        };
        exec("wait", "until [ -e /tmp/ready ]; do sleep 0.05; done");
        let more = exec("e", "echo out; echo err >&2; exit 3");
        assert_eq!((more.code, more.stdout(), more.stderr()), (3, "out\n".into(), "err\n".into()));
        let processes = ok(engine, &["task", "ps", "t"]);
        assert!(processes.lines().count() > 1, "{processes}");
        let metrics = ok(engine, &["task", "metrics", "t"]);
        assert!(metrics.contains("memory.usage"), "{metrics}");
        ok(engine, &["task", "pause", "t"]);
        assert_eq!(state(engine, "t"), "PAUSED");
        ok(engine, &["task", "resume", "t"]);
        assert_eq!(state(engine, "t"), "RUNNING");
        ok(engine, &["task", "kill", "-s", "TERM", "t"]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while state(engine, "t") != "STOPPED" {
            assert!(Instant::now() < deadline, "{}", state(engine, "t"));
        }
        assert_ne!(ctr(engine, &["task", "kill", "t"]).code, 0);
        // Some tell the task's code by their own.
        ctr(engine, &["task", "delete", "t"]);
        assert_eq!(state(engine, "t"), "");
        ok(engine, &["container", "delete", "t"]);
    });
}

#[test]
fn a_run_has_its_input_its_output_and_its_code() {
    everywhere(|engine, runtime| {
        let script = "read line; echo \"$line\"; echo err >&2; exit 7";
        let words = ["run", "--rm", "--runtime", runtime, BUSYBOX, "r", "sh", "-c", script];
        let done = run(engine.ctr(&words), b"through and through\n");
        let said = (done.code, done.stdout(), done.stderr());
        assert_eq!(said, (7, "through and through\n".into(), "err\n".into()));
        let mut terminal = Terminal::open();
        let words = ["run", "--rm", "-t", "--runtime", runtime, BUSYBOX, "s", "sh"];
        terminal.start(&engine.ctr(&words));
        terminal.screen.until("a prompt", |text| text.contains("# "));
        terminal.resize(33, 111);
        terminal.type_in("until [ \"$(stty size)\" = '33 111' ]; do :; done; echo re''sized\n");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !terminal.screen.text().contains("resized") {
            // ctr begins to follow the size some time after the task has begun to write.
            terminal.signal(Signal::WINCH);
            assert!(Instant::now() < deadline, "{}", terminal.screen.text());
            thread::sleep(Duration::from_millis(50));
        }
        terminal.type_in("exit 4\n");
        assert_eq!(terminal.wait(), 4);
    });
}
