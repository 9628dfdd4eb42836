//! docker 26, of a later Debian, with Kata as a runtime by path.
#![allow(clippy::unwrap_used)]

use kata_engine_tests::{claims_of, docker_26};

claims_of! {
    docker_26:
    a_server_lives_as_with_runc
    codes_of_failure_are_those_of_the_engine
    every_option_that_is_shown_has_a_row
    networks_come_and_go_while_it_runs
}
