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
    for runtime in [Runtime::Kata, Runtime::Runc] {
        let name = format!("hungry-{runtime:?}");
        let words = ["--name", &name, "-m", "32m", "busybox", "sh", "-c", script];
        assert_eq!(docker.run(runtime, &words).code, 137);
        let said = docker.ok(&["inspect", "-f", "{{.State.OOMKilled}}", &name]);
        assert_eq!(said.trim(), "true", "{name}");
    }
}
