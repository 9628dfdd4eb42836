//! Alone in its program, since it looks at everything that there is on the machine.

use std::env;

use kata_engine_tests::{claims, docker_26, docker_26_with_shim};

#[test]
fn a_hundred_containers_of_docker_26_leave_nothing() {
    // By path it is docker 20.10's way, which is tried in every run.
    let by_path = env::var_os("KATA_TEST_FULL").and_then(|_| docker_26());
    for engine in [docker_26_with_shim(), by_path].into_iter().flatten() {
        claims::a_hundred_leave_nothing(&engine);
    }
}
