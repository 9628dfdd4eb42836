//! podman, as people use it.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command};

use kata_engine_tests::{Life, Runtime, claims, claims_of, podman};
use kata_guest_tests::{Leftovers, cgroups_named};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

claims_of! {
    podman:
    a_server_lives_as_with_runc
    files_are_copied_while_it_runs
    a_terminal_is_one
    keys_detach
    codes_of_failure_are_those_of_the_engine
    the_network_of_another_container_is_left_alone
    networks_come_and_go_while_it_runs
    neighbours_find_each_other
    verbs_say_what_they_say_with_runc
    restart_policies_are_kept
}

#[test]
fn each_run_of_a_build_is_in_a_vm() {
    let Some(podman) = podman() else { return };
    claims::three_stages_are_built(&podman, |podman, context| {
        podman.command(&["--runtime", "kata", "build", "-q", "-t", "built", context])
    });
}

#[test]
fn each_run_of_buildah_is_in_a_vm() {
    let Some(podman) = podman() else { return };
    let buildah = |words: &[&str]| {
        let output = kata_guest_tests::run(podman.buildah(words), b"typed\n");
        (output.code, output.stdout(), output.stderr())
    };
    let (code, name, error) = buildah(&["from", "busybox"]);
    assert_eq!(code, 0, "{error}");
    let in_it = |words: &[&str]| {
        buildah(&[&["run", "--network", "none", name.trim(), "--"], words].concat())
    };
    let script = "test $(uname -r) != \"$0\" && cat && exit 7";
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let (code, output, error) = in_it(&["sh", "-c", script, host.trim()]);
    assert_eq!((code, output.as_str()), (7, "typed\n"), "{error}");
    let (code, _, error) = in_it(&["nope"]);
    assert!(code != 0 && error.contains("executable file not found in $PATH"), "{error}");
    // podman does not see buildah's containers, and could not remove them.
    let (code, _, error) = buildah(&["rm", name.trim()]);
    assert_eq!(code, 0, "{error}");
}

/// The container goes on, and what podman forgets of it the runtime can take away.
#[test]
fn the_death_of_conmon_is_what_it_is_with_runc() {
    let Some(podman) = podman() else { return };
    let runtimes =
        [(Runtime::Runc, Path::new("/usr/sbin/runc")), (Runtime::Kata, podman.runtime())];
    let lives = runtimes.map(|(runtime, program)| {
        let mut life = Life::new(&podman, runtime, "orphan");
        let file = podman.scratch().join(format!("conmon-{}", runtime.name()));
        let _follow =
            life.serve(&["--network", "none", "--conmon-pidfile", file.to_str().unwrap()]);
        let (id, pid) = (life.field(".Id"), life.field(".State.Pid").parse().unwrap());
        let conmon = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(conmon).unwrap(), Signal::KILL).unwrap();
        let call = |words: &[&str]| {
            let mut command = Command::new(program);
            command.args(words).arg(&id);
            kata_guest_tests::run(command, b"")
        };
        let state: serde_json::Value = serde_json::from_slice(&call(&["state"]).stdout).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&json!("running"), &json!(pid)), "{state}");
        life.ask(&["exec"], &["echo", "on"]);
        life.ask(&["rm", "-f", "-t", "0"], &[]);
        call(&["delete", "--force"]);
        assert_ne!(call(&["state"]).code, 0);
        Leftovers::assert_dead(pid);
        assert_eq!(cgroups_named(&id), Vec::<String>::new(), "{runtime:?}");
        life.transcript()
    });
    assert_eq!(lives[1], lives[0], "Kata on the left, runc on the right");
}

#[test]
fn a_directory_is_a_root() {
    let Some(podman) = podman() else { return };
    let Some(root) = kata_guest_tests::busybox() else { return };
    let root = root.path();
    for runtime in [Runtime::Runc, Runtime::Kata] {
        let words =
            ["--rm", "--network", "none", "--rootfs", root, "sh", "-c", "echo $0; exit 4", "a"];
        let output = podman.run(runtime, &words);
        assert_eq!((output.code, output.stdout()), (4, "a\n".into()), "{}", output.stderr());
    }
}

#[test]
fn a_health_check_is_an_exec() {
    let Some(podman) = podman() else { return };
    let mut life = Life::new(&podman, Runtime::Kata, "health");
    let _follow = life.serve(&[
        "--network",
        "none",
        "--health-cmd",
        "test -e /tmp/well",
        "--health-interval",
        "disable",
    ]);
    assert_eq!(podman.call(&["healthcheck", "run", life.name()]).code, 1);
    life.ask(&["exec"], &["touch", "/tmp/well"]);
    assert_eq!(podman.call(&["healthcheck", "run", life.name()]).code, 0);
}

#[test]
fn descriptors_beyond_stderr_are_refused() {
    let Some(podman) = podman() else { return };
    // The shell of the test gives podman a descriptor 3 to pass on.
    let command = podman.with(
        Runtime::Kata,
        "run",
        &["--rm", "--network", "none", "--preserve-fds", "1", "busybox", "true"],
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec 3</dev/null; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = kata_guest_tests::run(shell, b"");
    assert_ne!(output.code, 0);
    assert!(output.stderr().contains("preserve-fds"), "{}", output.stderr());
}
