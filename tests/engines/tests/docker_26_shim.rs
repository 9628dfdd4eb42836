//! docker 26 that starts Kata's shim itself (`runtimeType`, `--runtime io.containerd.kata.v2`).

use kata_engine_tests::{Runtime, claims, claims_of, docker_26_with_shim};

claims_of! {
    docker_26_with_shim:
    a_server_lives_as_with_runc
    codes_of_failure_are_those_of_the_engine
    networks_come_and_go_while_it_runs
}

#[test]
fn containers_go_on_when_dockerd_is_killed_and_started_again() {
    let Some(mut docker) = docker_26_with_shim() else { return };
    claims::containers_go_on_when_dockerd_is_killed(&mut docker);
}

#[test]
fn an_end_by_the_guests_oom_killer_is_told() {
    let Some(docker) = docker_26_with_shim() else { return };
    let script = "x=a; while :; do x=$x$x$x$x; done";
    let is_told = |runtime: Runtime, number: usize| {
        let name = format!("hungry-{runtime:?}-{number}");
        let words = ["--name", &name, "-m", "32m", "busybox", "sh", "-c", script];
        assert_eq!(docker.run(runtime, &words).code, 137);
        docker.ok(&["inspect", "-f", "{{.State.OOMKilled}}", &name]).trim() == "true"
    };
    assert!(is_told(Runtime::Kata, 0));
    // runc's shim hears of a kill and of the end by different ways, and tells of none that it hears of afterwards.
    assert!((0..10).any(|number| is_told(Runtime::Runc, number)));
}
