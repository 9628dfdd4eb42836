//! docker 26 that starts Kata's shim itself (`runtimeType`, `--runtime io.containerd.kata.v2`). It tells the codes of
//! an exec that fails by the words of runc's shim, so a server's life is not compared here.

use kata_engine_tests::{claims_of, docker_26_with_shim};

claims_of! {
    docker_26_with_shim:
    codes_of_failure_are_those_of_the_engine
    networks_come_and_go_while_it_runs
}
