//! podman, as people use it.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_engine_tests::{Life, Runtime, claims, claims_of, podman};

claims_of! {
    podman:
    a_server_lives_as_with_runc
    files_are_copied_while_it_runs
    a_terminal_is_one
    keys_detach
    codes_of_failure_are_those_of_the_engine
    the_network_of_a_runc_container_is_left_alone
    networks_come_and_go_while_it_runs
    neighbours_find_each_other
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
