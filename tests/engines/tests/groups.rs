//! Containers that an engine puts into one sandbox by an annotation alone, without one that stands for the sandbox. What holds
//! for runc too is asked of it, which tests the test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{Containerd, Handler, KATA, RUNC, Release};
use kata_guest_tests::{HostGroup, Output, Root, Running, busybox, run};
use serde_json::{Value, json};

/// The busiest machine has done by then.
const SOON: Duration = Duration::from_secs(30);

/// Containers of one group, of one engine and runtime.
struct Group<'a> {
    engine: &'a Containerd,
    runtime: &'a str,
    root: Root,
}

fn everywhere(claim: impl Fn(&Group)) {
    below(&[RUNC, KATA], claim);
}

fn below(handlers: &[Handler], claim: impl Fn(&Group)) {
    for release in Release::installed().into_iter().chain(Release::later()) {
        let Some(engine) = Containerd::start_release(release) else { return };
        for (_, runtime) in handlers {
            let Some(root) = busybox() else { return };
            claim(&Group { engine: &engine, runtime, root });
        }
    }
}

impl Group<'_> {
    fn ctr(&self, words: &[&str]) -> Output {
        run(self.engine.ctr(words), b"")
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.ctr(words);
        assert_eq!(output.code, 0, "{words:?}: {}", output.stderr());
        output.stdout()
    }

    /// Describes a container to the engine, which does not make it yet.
    fn describe(&self, id: &str, change: impl FnOnce(&mut Value)) {
        let mut spec: Value = serde_json::from_str(&self.ok(&["oci", "spec"])).unwrap();
        spec["root"] = json!({"path": self.root.path()});
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["process"]["env"] = json!(["PATH=/bin"]);
        // Not the group above those of all others, which would end with it.
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{id}"));
        spec["annotations"] = json!({"io.containerd.runc.v2.group": "group"});
        change(&mut spec);
        let file = self.engine.file(&format!("{id}.json"));
        fs::write(&file, spec.to_string()).unwrap();
        let path = file.to_str().unwrap();
        self.ok(&["container", "create", "--runtime", self.runtime, "--config", path, id]);
    }

    fn starting(&self, id: &str) -> Running {
        Running::start(self.engine.ctr(&["task", "start", "-d", id]))
    }

    /// What the engine says of a task; nothing of one that is not there.
    fn state(&self, id: &str) -> String {
        let list = self.ok(&["task", "ls"]);
        let line = list.lines().find(|line| line.starts_with(&format!("{id} ")));
        line.unwrap_or_default().split_whitespace().last().unwrap_or_default().to_owned()
    }

    fn runs(&self, id: &str) {
        let words = ["task", "exec", "--exec-id", "e", id, "echo", "on"];
        assert_eq!(self.ok(&words), "on\n", "{} {id}", self.runtime);
    }

    fn remove(&self, id: &str) {
        // It may have ended, or not have come to be.
        let task = self.ctr(&["task", "delete", "-f", id]);
        let done = self.ctr(&["container", "delete", id]);
        assert_eq!(done.code, 0, "{} {id}: {}; {}", self.runtime, task.stderr(), done.stderr());
    }
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_starts_while_the_first_boots_the_sandbox_joins_it() {
    everywhere(|group| {
        group.describe("first", |_| ());
        group.describe("second", |_| ());
        let first = group.starting("first");
        until("the first is made", || !group.state("first").is_empty());
        let second = group.starting("second");
        for started in [first.finish(), second.finish()] {
            assert_eq!(started.code, 0, "{}: {}", group.runtime, started.stderr());
        }
        group.runs("first");
        group.runs("second");
        group.remove("first");
        group.runs("second");
        group.remove("second");
    });
}

#[test]
fn what_is_killed_while_its_hook_runs_ends_alone() {
    // Below runc's own shim the signal waits until the hook is over.
    below(&[KATA], |group| {
        group.describe("other", |_| ());
        assert_eq!(group.starting("other").finish().code, 0);
        let begun = std::path::Path::new(group.root.path()).join("begun");
        group.describe("hooked", |spec| {
            let args = json!(["sh", "-c", "touch /begun; exec sleep 1000"]);
            spec["hooks"]["startContainer"] =
                json!([{"path": "/bin/sh", "args": args, "env": ["PATH=/bin"]}]);
        });
        let starting = group.starting("hooked");
        until("the hook runs", || begun.exists());
        group.ok(&["task", "kill", "-s", "KILL", "hooked"]);
        let killed = Instant::now();
        // It may say that it began, or that it was killed.
        starting.finish();
        assert!(killed.elapsed() < SOON, "{}: {:?}", group.runtime, killed.elapsed());
        until("it has ended", || ["STOPPED", ""].contains(&&group.state("hooked")[..]));
        group.remove("hooked");
        group.runs("other");
        group.remove("other");
    });
}

#[test]
fn the_last_to_go_leaves_the_sandbox_to_who_comes() {
    // runc's own shim answers nothing while it creates, and its engine waits for 2 s.
    below(&[KATA], |group| {
        group.describe("old", |_| ());
        assert_eq!(group.starting("old").finish().code, 0);
        let begun = group.engine.file("begun");
        fs::remove_file(&begun).ok();
        group.describe("new", |spec| {
            let args = json!(["sh", "-c", format!("touch {}; sleep 3", begun.display())]);
            spec["hooks"]["createRuntime"] =
                json!([{"path": "/bin/sh", "args": args, "env": ["PATH=/usr/bin:/bin"]}]);
        });
        let new = group.starting("new");
        until("it is being made", || begun.exists());
        group.remove("old");
        let started = new.finish();
        assert_eq!(started.code, 0, "{}: {}", group.runtime, started.stderr());
        group.runs("new");
        group.remove("new");
    });
}

#[test]
fn who_has_the_group_of_one_that_is_gone_keeps_it() {
    everywhere(|group| {
        for id in ["owner", "heir"] {
            group.describe(id, |_| ());
            assert_eq!(group.starting(id).finish().code, 0, "{} {id}", group.runtime);
        }
        group.remove("heir");
        let taken = HostGroup::new("/default/heir").directory("memory");
        fs::create_dir(&taken).unwrap();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(taken.join("cgroup.procs"), stranger.id().to_string()).unwrap();
        group.remove("owner");
        let ended = stranger.try_wait().unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        fs::remove_dir(&taken).unwrap();
        // It may be another test's, too.
        fs::remove_dir(taken.parent().unwrap()).ok();
        assert_eq!(ended, None, "{}: it was killed with the sandbox", group.runtime);
    });
}
