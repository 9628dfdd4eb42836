//! Every field of the OCI runtime specification: what is asked, and what a process sees of it, on Kata and on runc.
//!
//! Two containers ask for as much as can be asked at once, and [`rows`] says what has to be seen. `fields.txt` has the
//! fields of the schema: one without a row is a failure.
#![allow(clippy::unwrap_used)]

mod asked;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::net::UnixListener,
};

use asked::Surroundings;
use kata_guest_tests::{Bundle, Capture, Container, HostGroup, Kata, Terminal, Wire, debian};
use rows::{RECENT, ROWS, Seen};
use serde_json::{Value, json};

/// What was seen, under the name of the container and the key.
type Observations = BTreeMap<String, String>;

/// Reads what a probe prints; a terminal adds carriage returns.
fn observe(into: &mut Observations, container: &str, printed: &Capture) {
    let text =
        printed.until("the probe's answer", |text| text.contains("}\n") || text.contains("}\r\n"));
    let start = text.find('{').unwrap();
    let seen: Value = serde_json::from_str(text[start..].lines().next().unwrap()).unwrap();
    for (key, value) in seen.as_object().unwrap() {
        into.insert(format!("{container}: {key}"), value.as_str().unwrap().to_owned());
    }
}

/// Asks a runtime for everything and looks.
fn look(kata: &Kata, runtime: &Kata) -> Option<Observations> {
    let mut seen = Observations::new();
    let around = Surroundings::new(runtime, Wire::new(&["10.9.9.2/24"], &["10.9.9.1/24"]));
    let root = debian()?;
    around.furnish(&root);
    let mut first =
        Bundle::new(kata, root, &["python3", "/asked/probe.py", "wait", "asked argument"]);
    asked::first(&mut first.config, &around);
    first.write();
    let container = Container::started(runtime, &first, "oci-first");
    observe(&mut seen, "first", &container.stdout);
    for (name, process) in asked::added(&first.config) {
        let file = first.file(name);
        fs::write(&file, process.to_string()).unwrap();
        let output = runtime.call(&["exec", "--process", file.to_str().unwrap(), &container.id]);
        assert_eq!(output.code, 0, "{name}: {}", output.stderr());
        let answer: BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
        seen.extend(answer.into_iter().map(|(key, value)| (format!("{name}: {key}"), value)));
    }
    look_from_outside(&mut seen, &container, &around);
    assert_eq!(container.call(&["delete", "--force"]).code, 0);
    seen.insert("host: hooks".into(), around.hooks_that_ran());

    let root = debian()?;
    around.furnish(&root);
    let mut second = Bundle::new(kata, root, &["python3", "/asked/probe.py"]);
    asked::second(&mut second.config, &around);
    second.write();
    let listener = UnixListener::bind(second.file("console")).unwrap();
    let container = Container::create_with(runtime, &second, "oci-second", |command| {
        command.arg("--console-socket").arg(second.file("console"));
    });
    let terminal = Terminal::from_console_socket(&listener);
    container.must("start");
    observe(&mut seen, "second", &terminal.screen);
    Some(seen)
}

fn look_from_outside(seen: &mut Observations, container: &Container<'_>, around: &Surroundings) {
    let state = container.state();
    seen.insert("host: annotation".into(), state["annotations"]["asked"].to_string());
    let version = state["ociVersion"].as_str().unwrap();
    let own = container.kata.call(&["--version"]).stdout();
    let is_own = own.lines().any(|line| line.strip_prefix("spec: ") == Some(version));
    seen.insert("host: version".into(), is_own.to_string());
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    let asked = around.cgroups_path();
    seen.insert(
        "host: cgroup".into(),
        groups.lines().any(|line| line.ends_with(&asked)).to_string(),
    );
}

#[test]
fn every_field_of_the_schema_has_a_row() {
    let fields = include_str!("fields.txt").lines().filter(|line| !line.starts_with('#'));
    let fields: BTreeSet<&str> = fields.map(|line| line.trim_end_matches(" +")).collect();
    let rows: BTreeSet<&str> = ROWS.iter().map(|row| row.field).collect();
    assert!(fields.len() > 150);
    assert_eq!(fields.difference(&rows).collect::<Vec<_>>(), Vec::<&&str>::new(), "without a row");
    assert_eq!(rows.difference(&fields).collect::<Vec<_>>(), Vec::<&&str>::new(), "of no field");
}

#[test]
fn what_is_asked_is_seen() {
    let Some(kata) = Kata::installed() else { return };
    let oracle = Kata::oracle();
    let Some(on_kata) = look(&kata, &kata) else { return };
    let Some(on_runc) = look(&kata, &oracle) else { return };
    let recent = oracle.version() >= RECENT;
    let mut wrong = Vec::new();
    for row in ROWS {
        let (key, expected, on_both) = match row.seen {
            Seen::Same(key, expected) => (key, expected, true),
            Seen::SameOnV2(key, expected) => (key, expected, HostGroup::are_v2()),
            Seen::SameOnRecent(key, expected) => (key, expected, recent),
            Seen::Explained(..) => continue,
        };
        let ours = on_kata.get(key).map_or("nothing", String::as_str);
        let theirs = on_runc.get(key).map_or("nothing", String::as_str);
        if ours != expected {
            wrong.push(format!("{}: {key} should be {expected}, is {ours}", row.field));
        }
        if (theirs == expected) != on_both {
            wrong.push(format!("{}: {key} is {theirs} on runc", row.field));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_can_not_be_seen_is_explained() {
    let Some(kata) = Kata::installed() else { return };
    let Some(root) = kata_guest_tests::busybox() else { return };
    let mut bundle = Bundle::new(&kata, root, &["true"]);
    asked::explained(&mut bundle.config);
    bundle.write();
    let output = kata.call(&["explain", "--format", "json", bundle.path()]);
    assert_eq!(output.code, 0, "{}", output.stderr());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let answers = report["fields"].as_array().unwrap();
    for row in ROWS {
        let Seen::Explained(field, answer, word) = row.seen else { continue };
        let found: Vec<_> = answers.iter().filter(|line| line["field"] == field).collect();
        let right = found.iter().any(|line| {
            line["answer"] == answer && line["detail"].as_str().unwrap().contains(word)
        });
        assert!(right, "{}: should be {answer} ({word}), is {found:?}", row.field);
    }
    assert_eq!(report["runs"], json!(false));
}
