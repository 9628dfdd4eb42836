//! The page that people read says what the tables say.
#![allow(clippy::unwrap_used)]

use std::{env, fs};

use kata_engine_tests::{
    Kind,
    options::{directory, page},
};

#[test]
fn the_page_of_compatibility_is_up_to_date() {
    let path = directory().join("../../docs/compatibility.md");
    let written = fs::read_to_string(&path).unwrap();
    let (prose, _) = written.split_once("## Options\n").unwrap();
    let tables: String = [Kind::Podman, Kind::Docker].into_iter().map(page).collect();
    let wanted = format!("{prose}## Options\n{tables}");
    if env::var_os("KATA_WRITE_REFERENCE").is_some() {
        fs::write(&path, &wanted).unwrap();
        return;
    }
    assert_eq!(written, wanted, "run this test with KATA_WRITE_REFERENCE=1");
}
