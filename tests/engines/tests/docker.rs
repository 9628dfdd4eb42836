//! docker, as people use it, with Kata as a runtime by path.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_engine_tests::{Engine, Runtime, claims_of, docker};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

claims_of! {
    docker:
    a_server_lives_as_with_runc
    files_are_copied_while_it_runs
    a_terminal_is_one
    keys_detach
    codes_of_failure_are_those_of_the_engine
    the_network_of_a_runc_container_is_left_alone
}

/// SIGKILL for dockerd, and a new one. Its containerd dies with it, and somebody has to reap that.
fn restart(docker: &mut Engine) {
    let file = docker.scratch().join("exec/containerd/containerd.pid");
    let containerd = fs::read_to_string(file).unwrap().trim().parse().ok().and_then(Pid::from_raw);
    docker.daemon().kill().unwrap();
    docker.daemon().wait().unwrap();
    waitpid(containerd, WaitOptions::empty()).unwrap();
    docker.start_daemon();
}

#[test]
fn containers_go_on_when_dockerd_is_killed_and_started_again() {
    set_child_subreaper(Some(getpid())).unwrap();
    let Some(mut docker) = docker() else { return };
    let counter =
        "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; echo counted; exec sleep 600";
    let words = ["-d", "--name", "counter", "busybox", "sh", "-c", counter];
    docker.run(Runtime::Kata, &words);
    let pid = docker.ok(&["inspect", "-f", "{{.State.Pid}}", "counter"]);
    restart(&mut docker);
    assert_eq!(
        docker.ok(&["inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "counter"]),
        format!("{pid} running")
    );
    let follow = docker.start(Runtime::Kata, "logs", &["-f", "counter"]);
    let text = follow.stdout.until_has("counted\n");
    let wanted: String = (0..3000).map(|i| format!("{i}\n")).collect();
    assert_eq!(text, wanted + "counted\n", "output was lost or came twice");
    assert_eq!(docker.ok(&["exec", "counter", "echo", "controllable"]), "controllable");
    docker.ok(&["kill", "counter"]);
    assert_eq!(docker.ok(&["wait", "counter"]), "137");
}
