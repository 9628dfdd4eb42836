//! docker 26 that starts Kata's shim itself (`runtimeType`, `--runtime io.containerd.kata.v2`).

use kata_engine_tests::{claims_of, docker_26_with_shim};

claims_of! {
    docker_26_with_shim:
    a_server_lives_as_with_runc
    codes_of_failure_are_those_of_the_engine
    networks_come_and_go_while_it_runs
}
