use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Hook, Hooks, Kind, State, Status,
    place::{Place, run_in},
    run_all, run_each,
};

fn state() -> State {
    State {
        oci_version: "1.2.0".into(),
        id: "c1".into(),
        status: Status::Creating,
        pid: Some(7),
        bundle: "/b".into(),
        annotations: BTreeMap::from([("a".into(), "b".into())]),
    }
}

fn shell(script: &str) -> Hook {
    Hook {
        path: "/bin/sh".into(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Hook::default()
    }
}

/// The chain of errors, as it is told.
fn complaint(hook: Hook) -> String {
    let error = run_all(Kind::CreateRuntime, &[hook], &state()).unwrap_err();
    format!("{error}: {}", error.fault)
}

#[test]
fn a_hook_gets_its_arguments_its_environment_and_the_state() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let hook = Hook {
        path: "/bin/sh".into(),
        args: vec![
            "name".into(),
            "-c".into(),
            "{ echo $0 $1; /usr/bin/env; cat; } > $OUT".into(),
            "zero".into(),
            "one".into(),
        ],
        env: Some(vec![format!("OUT={}", out.display()), "A=1".into()]),
        timeout: None,
    };
    run_all(Kind::Prestart, &[hook], &state()).unwrap();
    let text = fs::read_to_string(out).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("zero one"));
    let json = lines.next_back().unwrap();
    assert_eq!(
        json,
        r#"{"ociVersion":"1.2.0","id":"c1","status":"creating","pid":7,"bundle":"/b","annotations":{"a":"b"}}"#
    );
    // The shell itself adds PWD and the like, nothing else does.
    let shells_own = ["PWD=", "_=", "SHLVL=", "OLDPWD="];
    let given: Vec<&str> =
        lines.filter(|line| !shells_own.iter().any(|own| line.starts_with(own))).collect();
    assert_eq!(given.len(), 2, "{given:?}");
}

#[test]
fn without_arguments_the_path_is_all() {
    let hook = Hook { path: "/bin/false".into(), ..Hook::default() };
    assert!(complaint(hook).ends_with(": exit status 1, stdout: , stderr: "));
}

#[test]
fn the_first_that_fails_ends_the_list() {
    let scratch = tempfile::tempdir().unwrap();
    let mark = |name: &str| shell(&format!("echo > {}/{name}", scratch.path().display()));
    let hooks = [mark("0"), shell("echo out; echo err >&2; exit 3"), mark("2")];
    let error = run_all(Kind::CreateContainer, &hooks, &state()).unwrap_err();
    assert_eq!(error.to_string(), "error running createContainer hook #1");
    assert_eq!(error.fault.to_string(), "exit status 3, stdout: out, stderr: err");
    assert!(scratch.path().join("0").exists() && !scratch.path().join("2").exists());
    let errors = run_each(Kind::Poststop, &hooks, &state());
    assert_eq!(errors.len(), 1);
    assert!(scratch.path().join("2").exists());
}

#[test]
fn every_way_to_fail_is_told() {
    let absent = Hook { path: "/nonexistent/hook".into(), ..Hook::default() };
    assert_eq!(
        complaint(absent),
        "error running createRuntime hook #0: cannot execute \"/nonexistent/hook\""
    );
    assert!(complaint(shell("kill -9 $$")).contains("signal: killed, stdout: , stderr: "));
    let zero = Hook { args: vec!["a\0b".into()], ..shell("") };
    assert!(complaint(zero).ends_with("contain a zero byte"));
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_children() {
    let scratch = tempfile::tempdir().unwrap();
    let pid = scratch.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let hook = Hook { timeout: Some(1), ..shell(&script) };
    let started = Instant::now();
    assert!(complaint(hook).ends_with("hook ran past specified timeout of 1.0s"));
    assert!(started.elapsed() < Duration::from_secs(20));
    let child = fs::read_to_string(pid).unwrap();
    let status = format!("/proc/{}/status", child.trim());
    // The signal is on its way, and then whoever adopts it may not have reaped it yet.
    while fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(started.elapsed() < Duration::from_secs(60), "{status} is there for good");
    }
}

#[test]
fn a_descendant_that_holds_the_streams_is_not_waited_for() {
    let started = Instant::now();
    run_all(Kind::Prestart, &[shell("sleep 30 & exit 0")], &state()).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn megabytes_are_read_and_their_end_is_kept() {
    let script = "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1";
    let said = complaint(shell(script));
    assert!(said.len() < 500, "{}", said.len());
    assert!(said.contains("stdout: ...x") && said.contains("the end, stderr: "), "{said}");
}

#[test]
fn a_state_larger_than_a_pipe_need_not_be_read() {
    let mut state = state();
    state.annotations.insert("large".into(), "x".repeat(1 << 20));
    run_all(Kind::Prestart, &[shell("exit 0")], &state).unwrap();
    run_all(Kind::Prestart, &[shell("test $(wc -c) -gt 1000000")], &state).unwrap();
}

#[test]
fn a_place_is_left_behind() {
    let before = std::env::current_dir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let place = Place { directory: scratch.path(), container: None };
    let hooks = [shell("pwd -P > here")];
    run_in(place, || run_all(Kind::Prestart, &hooks, &state())).unwrap().unwrap();
    let here = fs::read_to_string(scratch.path().join("here")).unwrap();
    assert_eq!(PathBuf::from(here.trim()), scratch.path().canonicalize().unwrap());
    assert_eq!(std::env::current_dir().unwrap(), before);
    let nowhere = Place { directory: Path::new("/nonexistent"), container: None };
    let error = run_in(nowhere, || ()).unwrap_err().to_string();
    assert_eq!(error, "cannot enter /nonexistent for hooks");
}

#[test]
fn null_is_an_empty_list() {
    let hooks: Hooks =
        serde_json::from_str(r#"{"prestart":null,"poststop":[{"path":"/x","args":null}]}"#)
            .unwrap();
    assert!(hooks.prestart.is_empty());
    assert_eq!(hooks.poststop[0].args, Vec::<String>::new());
}
