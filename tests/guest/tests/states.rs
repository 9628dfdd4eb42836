//! Every command in every state of a container: the same exit code, the same words and the same state afterwards as runc's.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_guest_tests::{Bundle, Container, Kata, busybox};
use serde_json::{Value, json};

/// A command in a state, and what comes of it.
struct Row {
    /// `ID` stands for the container, `BUNDLE` for its bundle.
    command: &'static [&'static str],
    code: i32,
    /// Has to be in what it says on stderr; empty: it says nothing there.
    words: &'static str,
    /// Afterwards.
    state: &'static str,
}

const fn row(
    command: &'static [&'static str],
    code: i32,
    words: &'static str,
    state: &'static str,
) -> Row {
    Row { command, code, words, state }
}

const NOWHERE: &str = "container does not exist";
const TAKEN: &str = "container with given ID already exists";
const NOT_RUNNING: &str = "container not running";
const NOT_PAUSED: &str = "container not paused";
const UNKNOWN_SIGNAL: &str = "unknown signal \"NOPE\"";
const NO_SIGNAL: &str = "unable to signal init: invalid argument";
const NO_PROGRAM: &str = "exec: \"nope\": executable file not found in $PATH";
const NOT_STOPPED: &str = "that is not stopped: ";

/// A container that nobody has created.
const NEVER: &[Row] = &[
    row(&["state", "ID"], 1, NOWHERE, ""),
    row(&["start", "ID"], 1, NOWHERE, ""),
    row(&["kill", "ID"], 1, NOWHERE, ""),
    row(&["kill", "--all", "ID", "KILL"], 1, NOWHERE, ""),
    row(&["kill", "ID", "NOPE"], 1, NOWHERE, ""),
    row(&["delete", "ID"], 1, NOWHERE, ""),
    row(&["delete", "--force", "ID"], 0, "", ""),
    row(&["exec", "ID", "true"], 255, NOWHERE, ""),
    row(&["exec", "--detach", "ID", "true"], 255, NOWHERE, ""),
    row(&["pause", "ID"], 1, NOWHERE, ""),
    row(&["resume", "ID"], 1, NOWHERE, ""),
    row(&["ps", "ID"], 1, NOWHERE, ""),
    row(&["ps", "--format", "json", "ID"], 1, NOWHERE, ""),
    row(&["delete", "--force", "--force=false", "ID"], 1, NOWHERE, ""),
    row(&["--root", "/nonexistent", "--debug=maybe", "state", "ID"], 1, "", ""),
    row(&["list", "--quiet"], 0, "", ""),
    row(&["list", "--format", "json", "--format=table", "-q=true"], 0, "", ""),
    row(&["list", "--format", "xml"], 1, "invalid format option", ""),
];

const CREATED: &[Row] = &[
    row(&["state", "ID"], 0, "", "created"),
    row(&["create", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "created"),
    row(&["run", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "created"),
    row(&["kill", "ID", "0"], 0, "", "created"),
    row(&["kill", "ID", "NOPE"], 1, UNKNOWN_SIGNAL, "created"),
    row(&["kill", "ID", "99"], 1, NO_SIGNAL, "created"),
    row(&["kill", "--all", "ID", "CONT"], 0, "", "created"),
    row(&["resume", "ID"], 1, NOT_PAUSED, "created"),
    row(&["exec", "ID", "true"], 0, "", "created"),
    row(&["exec", "ID", "sh", "-c", "exit 3"], 3, "", "created"),
    row(&["exec", "ID", "nope"], 255, NO_PROGRAM, "created"),
    row(&["ps", "ID"], 0, "", "created"),
    row(&["ps", "--format", "json", "ID"], 0, "", "created"),
    row(&["list", "--quiet"], 0, "", "created"),
];

const RUNNING: &[Row] = &[
    row(&["state", "ID"], 0, "", "running"),
    row(&["create", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "running"),
    row(&["run", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "running"),
    row(&["start", "ID"], 1, "cannot start an already running container", "running"),
    row(&["kill", "ID", "0"], 0, "", "running"),
    row(&["kill", "ID", "NOPE"], 1, UNKNOWN_SIGNAL, "running"),
    row(&["kill", "ID", "99"], 1, NO_SIGNAL, "running"),
    row(&["kill", "--all", "ID", "CONT"], 0, "", "running"),
    row(&["delete", "ID"], 1, NOT_STOPPED, "running"),
    row(&["exec", "ID", "true"], 0, "", "running"),
    row(&["exec", "ID", "sh", "-c", "exit 254"], 254, "", "running"),
    row(&["exec", "ID", "nope"], 255, NO_PROGRAM, "running"),
    row(&["exec", "--detach", "ID", "nope"], 255, NO_PROGRAM, "running"),
    row(&["exec", "-t", "-t=false", "-e", "-A=1", "--user", "", "ID", "true"], 0, "", "running"),
    row(&["exec", "--user", "77", "--user=0", "--pid-file", "", "ID", "true"], 0, "", "running"),
    row(
        &["--log-format", "text", "--log-format", "json", "--log", "", "state", "ID"],
        0,
        "",
        "running",
    ),
    row(&["--log-format", "json", "pause", "--", "none"], 1, "{\"level\":\"error\",", "running"),
    row(
        &["-debug=false", "--systemd-cgroup=0", "kill", "--all=false", "ID", "0"],
        0,
        "",
        "running",
    ),
    row(
        &["update", "--memory", "", "--cpu-period", "", "--pids-limit", "99", "ID"],
        0,
        "",
        "running",
    ),
    row(&["update", "--memory", "0.5G", "--memory=64.5M", "ID"], 0, "", "running"),
    row(&["exec", "ID"], 255, "process args cannot be empty", "running"),
    row(&["resume", "ID"], 1, NOT_PAUSED, "running"),
    row(&["ps", "ID"], 0, "", "running"),
    row(&["ps", "--format", "json", "ID"], 0, "", "running"),
    row(&["ps", "--format", "xml", "ID"], 1, "invalid format option", "running"),
    row(&["pause", "ID"], 0, "", "paused"),
    row(&["resume", "ID"], 0, "", "running"),
];

const PAUSED: &[Row] = &[
    row(&["state", "ID"], 0, "", "paused"),
    row(&["create", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "paused"),
    row(&["start", "ID"], 1, "cannot start a container in the paused state", "paused"),
    row(&["kill", "ID", "0"], 0, "", "paused"),
    row(&["kill", "ID", "NOPE"], 1, UNKNOWN_SIGNAL, "paused"),
    row(&["delete", "ID"], 1, NOT_STOPPED, "paused"),
    row(&["exec", "ID", "true"], 255, "cannot exec in a paused container", "paused"),
    row(&["pause", "ID"], 1, NOT_RUNNING, "paused"),
    row(&["ps", "ID"], 0, "", "paused"),
    row(&["ps", "--format", "json", "ID"], 0, "", "paused"),
    row(&["list", "--quiet"], 0, "", "paused"),
];

const STOPPED: &[Row] = &[
    row(&["state", "ID"], 0, "", "stopped"),
    row(&["create", "--bundle", "BUNDLE", "ID"], 1, TAKEN, "stopped"),
    row(&["start", "ID"], 1, "cannot start a container that has stopped", "stopped"),
    row(&["kill", "ID"], 1, NOT_RUNNING, "stopped"),
    row(&["kill", "ID", "0"], 1, NOT_RUNNING, "stopped"),
    row(&["kill", "ID", "NOPE"], 1, UNKNOWN_SIGNAL, "stopped"),
    row(&["kill", "ID", "99"], 1, NOT_RUNNING, "stopped"),
    row(&["kill", "--all", "ID", "KILL"], 0, "", "stopped"),
    row(&["exec", "ID", "true"], 255, "cannot exec in a stopped container", "stopped"),
    row(&["pause", "ID"], 1, NOT_RUNNING, "stopped"),
    row(&["resume", "ID"], 1, NOT_PAUSED, "stopped"),
    row(&["ps", "ID"], 0, "", "stopped"),
    row(&["ps", "--format", "json", "ID"], 0, "", "stopped"),
    row(&["list", "--quiet"], 0, "", "stopped"),
    row(&["delete", "ID"], 0, "", ""),
    row(&["delete", "ID"], 1, NOWHERE, ""),
    row(&["delete", "--force", "ID"], 0, "", ""),
];

/// Runs a claim on runc and on Kata, each with a root and a bundle of its own.
fn on_both(claim: impl Fn(&Kata, &Bundle)) {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        claim(runtime, &Bundle::new(&kata, root, &["sleep", "1000"]));
    }
}

/// Goes through the rows with one container, which each row leaves in the state that it says.
fn go_through(runtime: &Kata, bundle: &Bundle, (id, rows): (&str, &[Row])) {
    for Row { command, code, words, state } in rows {
        let command: Vec<&str> = command
            .iter()
            .map(|word| match *word {
                "ID" => id,
                "BUNDLE" => bundle.path(),
                word => word,
            })
            .collect();
        let who = runtime.program().display();
        let done = runtime.call(&command);
        // runc's lines are quoted once more.
        let said = done.stderr().replace("\\\"", "\"");
        assert_eq!(done.code, *code, "{who} {command:?} for {state:?}: {said}");
        assert!(said.contains(words), "{who} {command:?} for {state:?}: {said}");
        if *code == 0 {
            assert_eq!(said, "", "{who} {command:?} for {state:?}");
        }
        let now = runtime.call(&["state", id]);
        let now: Value = serde_json::from_slice(&now.stdout).unwrap_or_default();
        assert_eq!(now["status"].as_str().unwrap_or_default(), *state, "{who} {command:?}");
    }
}

#[test]
fn nobody_knows_a_container_that_was_never_created() {
    on_both(|runtime, bundle| {
        if !runtime.is_oracle() {
            // Newer versions of runc say so, too; older ones make it.
            runtime.call(&["list"]).assert_one_line(&["cannot read the state directory"]);
        }
        fs::create_dir_all(runtime.state()).unwrap();
        go_through(runtime, bundle, ("never", NEVER));
    });
}

#[test]
fn a_list_has_the_annotations() {
    on_both(|runtime, _| {
        let mut bundle = Bundle::new(runtime, busybox().unwrap(), &["true"]);
        bundle.config["annotations"] = serde_json::json!({ "org.example.a": "b" });
        bundle.write();
        let _container = Container::create(runtime, &bundle, "annotated");
        let listed = runtime.call(&["list", "--format", "json"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed[0]["annotations"]["org.example.a"], "b", "{listed}");
    });
}

#[test]
fn a_created_container_can_be_looked_at_and_started_and_killed() {
    on_both(|runtime, bundle| {
        let container = Container::create(runtime, bundle, "created");
        go_through(runtime, bundle, (&container.id, CREATED));
        container.must("start");
        assert_eq!(container.status(), "running");
        assert_eq!(container.exec(&["sh", "-c", "exit 4"], b"").code, 4);
        assert_eq!(container.kill("KILL").code, 0);
        assert_eq!(container.wait().0, 137);
    });
}

#[test]
fn a_created_container_is_deleted_without_force() {
    on_both(|runtime, bundle| {
        let container = Container::create(runtime, bundle, "created-deleted");
        let rows = [row(&["delete", "ID"], 0, "", "")];
        go_through(runtime, bundle, (&container.id, &rows));
    });
}

#[test]
fn a_created_container_that_was_entered_is_killed_like_any() {
    on_both(|runtime, bundle| {
        let container = Container::create(runtime, bundle, "entered");
        assert_eq!(container.exec(&["true"], b"").code, 0);
        assert_eq!(container.kill("KILL").code, 0);
        assert_eq!(container.wait().0, 137);
        assert_eq!(container.status(), "stopped");
        container.must("delete");
    });
}

#[test]
fn a_running_container_can_do_everything_but_start() {
    on_both(|runtime, bundle| {
        let container = Container::started(runtime, bundle, "running");
        go_through(runtime, bundle, (&container.id, RUNNING));
        let rows = [row(&["delete", "--force", "ID"], 0, "", "")];
        go_through(runtime, bundle, (&container.id, &rows));
    });
}

#[test]
fn a_paused_container_can_be_resumed_and_killed() {
    on_both(|runtime, bundle| {
        let container = Container::started(runtime, bundle, "paused");
        container.must("pause");
        go_through(runtime, bundle, (&container.id, PAUSED));
        // A signal waits until it is resumed.
        assert_eq!(container.kill("KILL").code, 0);
        container.call(&["resume"]);
        assert_eq!(container.wait().0, 137);
    });
}

#[test]
fn a_paused_container_is_deleted_with_force() {
    on_both(|runtime, bundle| {
        let container = Container::started(runtime, bundle, "paused-deleted");
        container.must("pause");
        let rows = [row(&["delete", "--force", "ID"], 0, "", "")];
        go_through(runtime, bundle, (&container.id, &rows));
    });
}

#[test]
fn a_stopped_container_can_only_be_looked_at_and_deleted() {
    on_both(|runtime, bundle| {
        let container = Container::started(runtime, bundle, "stopped");
        assert_eq!(container.kill("KILL").code, 0);
        assert_eq!(container.wait().0, 137);
        go_through(runtime, bundle, (&container.id, STOPPED));
    });
}

#[test]
fn state_says_the_same_in_the_same_fields() {
    let Some(kata) = Kata::installed() else { return };
    let mut said = Vec::new();
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = busybox() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
        bundle.config["annotations"] = json!({"a.b": "c"});
        bundle.write();
        let container = Container::create(runtime, &bundle, "fields");
        let mut states = Vec::new();
        for verb in ["start", "pause", "resume", "kill", ""] {
            let mut state = container.state();
            let fields = state.as_object_mut().unwrap();
            // Kata says more, and runc writes its own version.
            fields.remove("kata");
            assert!(fields["ociVersion"].is_string());
            assert!(fields["created"].as_str().unwrap().ends_with('Z'));
            assert_eq!(fields["bundle"], bundle.path());
            assert_eq!(fields["rootfs"], bundle.root().path());
            assert_eq!(fields["id"], container.id);
            let pid = fields["pid"].as_i64().unwrap();
            assert_eq!(pid, if verb.is_empty() { 0 } else { container.pid.into() });
            for own in ["id", "pid", "ociVersion", "created", "bundle", "rootfs"] {
                fields[own] = Value::Null;
            }
            states.push(state);
            match verb {
                "" => {}
                "kill" => {
                    assert_eq!(container.kill("KILL").code, 0);
                    container.wait();
                }
                verb => container.must(verb),
            }
        }
        said.push(states);
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].len(), 5);
}

#[test]
fn ps_counts_the_same_processes_and_names_the_pid_of_the_container() {
    on_both(|runtime, bundle| {
        let container = Container::started(runtime, bundle, "ps");
        let pids = runtime.call(&["ps", "--format", "json", &container.id]);
        let pids: Value = serde_json::from_slice(&pids.stdout).unwrap();
        assert_eq!(pids, json!([container.pid]));
        let table = runtime.call(&["ps", &container.id]).stdout();
        assert_eq!(table.lines().count(), 2, "{table}");
        assert_eq!(container.kill("KILL").code, 0);
        container.wait();
        assert_eq!(container.call(&["ps", "--format", "json"]).stdout().trim(), "null");
        assert_eq!(container.call(&["ps"]).stdout().lines().count(), 1);
    });
}
