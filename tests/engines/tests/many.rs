//! Alone in its program, since it looks at everything that there is on the machine.

use kata_engine_tests::{claims, docker, podman};

#[test]
fn a_hundred_containers_leave_nothing() {
    for engine in [podman(), docker()].into_iter().flatten() {
        claims::a_hundred_leave_nothing(&engine);
    }
}
