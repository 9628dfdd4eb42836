//! Every option of docker has an answer, and it is the right one.
#![allow(clippy::unwrap_used)]

use kata_engine_tests::{Cases, Kind, Runtime, docker, options, options::Table};

#[test]
fn every_option_that_docker_shows_has_a_row() {
    let Some(docker) = docker() else { return };
    let table = Table::of(Kind::Docker);
    let mut missing = Vec::new();
    for command in ["run", "create", "exec"] {
        let shown = options::shown(&docker, command);
        assert!(shown.len() > 5, "{command}: {shown:?}");
        let rows = |name: &str| table.option.get(name).into_iter().flat_map(|rows| rows.keys());
        // `create` has the options of `run`, but for a few.
        let known: Vec<&String> = match command {
            "create" => rows("create").chain(rows("run")).collect(),
            command => rows(command).collect(),
        };
        missing.extend(
            shown
                .iter()
                .filter(|option| !known.contains(option))
                .map(|option| format!("{command} {option}: no row")),
        );
        missing.extend(
            rows(command)
                .filter(|option| !shown.contains(option))
                .map(|option| format!("{command} {option}: not an option of this docker")),
        );
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn rows_name_cases_that_use_their_option() {
    let faults = Table::of(Kind::Docker).faults();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn options_do_what_they_do_with_runc() {
    let Some(docker) = docker() else { return };
    let table = Table::of(Kind::Docker);
    let faults = Cases { engine: &docker }.run(&table.case);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn options_of_exec_do_what_they_do_with_runc() {
    let Some(docker) = docker() else { return };
    let table = Table::of(Kind::Docker);
    let cases = Cases { engine: &docker };
    for runtime in [Runtime::Runc, Runtime::Kata] {
        docker.run(runtime, &["-d", "--name", runtime.name(), "busybox", "sleep", "600"]);
    }
    let faults = cases.exec(&table.exec);
    assert!(faults.is_empty(), "{faults:#?}");
}
