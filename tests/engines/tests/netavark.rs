//! podman with networks of its own making, as it is installed by default from Debian 13 on, and names on them.

use kata_engine_tests::{claims_of, podman_with_netavark};

claims_of! {
    podman_with_netavark:
    a_server_lives_as_with_runc
    the_network_of_another_container_is_left_alone
    networks_come_and_go_while_it_runs
    neighbours_find_each_other
}
