//! Every option of podman has an answer, and it is the right one.

use kata_engine_tests::{Kind, claims_of, options::Table, podman};

claims_of! {
    podman:
    every_option_that_is_shown_has_a_row
    options_do_what_they_do_with_runc
    options_of_exec_do_what_they_do_with_runc
    options_of_update_do_what_they_do_with_runc
}

#[test]
fn rows_name_cases_that_use_their_option() {
    let faults = Table::of(Kind::Podman).faults();
    assert!(faults.is_empty(), "{faults:#?}");
}
