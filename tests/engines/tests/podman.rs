//! podman, as people use it.
#![allow(clippy::unwrap_used)]

use std::fs;

use kata_engine_tests::{Life, Runtime, claims_of, podman};

claims_of! {
    podman:
    a_server_lives_as_with_runc
    files_are_copied_while_it_runs
    a_terminal_is_one
    keys_detach
    codes_of_failure_are_those_of_the_engine
    the_network_of_a_runc_container_is_left_alone
}

#[test]
fn each_run_of_a_build_is_in_a_vm() {
    let Some(podman) = podman() else { return };
    let context = podman.scratch().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(
        context.join("Dockerfile"),
        "FROM busybox AS one\nRUN mkdir /out && uname -r > /out/kernel && echo one > /out/one\n\
         FROM busybox AS two\nCOPY --from=one /out/one /in/one\nRUN cat /in/one > /two && echo two >> /two\n\
         FROM busybox\nCOPY --from=two /two /final\nCOPY --from=one /out/kernel /kernel\n\
         RUN echo three >> /final\nCMD cat /final\n",
    )
    .unwrap();
    let context = context.to_str().unwrap();
    podman.ok(&["--runtime", "kata", "build", "-q", "-t", "built", context]);
    let run = |command: &[&str]| {
        let words = [&["--rm", "--network", "none", "built"], command].concat();
        podman.run(Runtime::Runc, &words).stdout()
    };
    assert_eq!(run(&[]), "one\ntwo\nthree\n");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(run(&["cat", "/kernel"]), host);
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
