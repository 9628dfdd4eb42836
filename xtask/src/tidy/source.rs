//! Rules for Rust files.

use std::collections::BTreeSet;

use super::Findings;
use super::code::without_text;
use super::files::TextFile;

const WARN_LINES: usize = 500;
const MOST_LINES: usize = 800;
/// In the first lines of a file that is a table, or was generated, this lifts the limit on its length.
const LENGTH_MARKERS: &[&str] = &["// tidy: table", "@generated"];

/// Names that say nothing about what is inside.
const BANNED_MODULES: &[&str] =
    &["common", "util", "utils", "misc", "helpers", "inner", "base", "types"];

/// Lints that hold the line on size and on panics; nobody may lift them for a function of theirs.
const FINAL_LINTS: &[&str] = &[
    "clippy::too_many_lines",
    "clippy::too_many_arguments",
    "clippy::fn_params_excessive_bools",
    "clippy::undocumented_unsafe_blocks",
    "clippy::todo",
    "clippy::unimplemented",
];

/// Words that code must not contain, where, and what to do instead.
struct Ban {
    word: &'static str,
    applies: fn(&Place) -> bool,
    instead: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        word: "unsafe",
        applies: |place| place.top != "sys",
        instead: "unsafe code lives in sys/",
    },
    Ban {
        word: "println!",
        applies: |place| place.library,
        instead: "a library returns or logs, it does not print",
    },
    Ban {
        word: "print!",
        applies: |place| place.library,
        instead: "a library returns or logs, it does not print",
    },
    Ban {
        word: ".expect(",
        applies: |place| place.top == "agent",
        instead: "the agent returns errors",
    },
    Ban {
        word: "panic!",
        applies: |place| place.top == "agent",
        instead: "the agent returns errors",
    },
    Ban {
        word: "sleep",
        applies: |place| place.product && place.top != "sys",
        instead: "wait for the event, not for the clock",
    },
    Ban {
        word: "anyhow",
        applies: |place| place.library,
        instead: "a library has error types; anyhow is for main",
    },
];

/// Where a file is, as far as the rules care.
struct Place<'a> {
    top: &'a str,
    /// Part of a crate with a `lib.rs`.
    library: bool,
    /// Runs on a user's machine: neither xtask nor tests.
    product: bool,
}

/// Checks every Rust file.
pub fn check(files: &[TextFile], findings: &mut Findings) {
    let libraries: BTreeSet<&str> =
        files.iter().filter_map(|file| file.path.strip_suffix("/src/lib.rs")).collect();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let top = file.path.split('/').next().unwrap_or_default();
        let place = Place {
            top,
            library: libraries.contains(top) && !is_program(&file.path),
            product: !matches!(top, "xtask" | "tests"),
        };
        check_length(file, findings);
        check_name(file, findings);
        check_code(file, &place, findings);
    }
}

/// A crate root of its own beside the library: a program or a build script.
fn is_program(path: &str) -> bool {
    path.ends_with("/src/main.rs") || path.contains("/src/bin/") || path.ends_with("/build.rs")
}

/// A file with nothing but tests.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn check_length(file: &TextFile, findings: &mut Findings) {
    let lines = file.text.lines().count();
    let start: Vec<&str> = file.text.lines().take(5).collect();
    let exempt = LENGTH_MARKERS.iter().any(|marker| start.iter().any(|line| line.contains(marker)));
    if exempt || lines <= WARN_LINES {
        return;
    }
    let finding = format!("{}: {lines} lines; split it at {WARN_LINES}", file.path);
    if lines > MOST_LINES {
        findings.fail(finding);
    } else {
        findings.warn(finding);
    }
}

fn check_name(file: &TextFile, findings: &mut Findings) {
    let stem = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
    let name = stem.rsplit('/').next().unwrap_or(stem);
    if BANNED_MODULES.contains(&name) {
        findings.fail(format!("{}: a module named {name} says nothing; name it", file.path));
    }
}

fn check_code(file: &TextFile, place: &Place<'_>, findings: &mut Findings) {
    let code = without_text(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    let mut in_tests = is_test(&file.path);
    for (number, line) in (1usize..).zip(code.lines()) {
        in_tests |= line.trim() == "#[cfg(test)]";
        for lint in FINAL_LINTS {
            if line.contains(lint) {
                findings.fail(format!("{}:{number}: {lint} is final", file.path));
            }
        }
        // A module of tests is at the end of its file.
        if in_tests {
            continue;
        }
        let above = number.checked_sub(2).and_then(|above| lines.get(above)).copied();
        for ban in BANS.iter().filter(|ban| (ban.applies)(place) && has_word(line, ban.word)) {
            if ban.word == "sleep" && is_no_wait(line, above.unwrap_or_default()) {
                continue;
            }
            findings.fail(format!("{}:{number}: {}: {}", file.path, ban.word, ban.instead));
        }
    }
}

/// A deadline in a `select!` ends a wait for something else; and where the passing of time itself is meant, a comment
/// right above says so.
fn is_no_wait(line: &str, above: &str) -> bool {
    line.trim_start().starts_with("() = ") || above.trim_start().starts_with("// ")
}

/// Whether a line has a word that is not part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let begins_inside = word.starts_with(joins) && before.ends_with(joins);
        let ends_inside = word.ends_with(joins) && after.starts_with(joins);
        !begins_inside && !ends_inside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(path: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        let lib = TextFile { path: "spec/src/lib.rs".into(), text: String::new() };
        let file = TextFile { path: path.into(), text: text.into() };
        check(&[lib, file], &mut findings);
        findings.failures
    }

    #[test]
    fn unsafe_is_refused_outside_sys() {
        assert_eq!(failures("agent/src/a.rs", "unsafe { x() }").len(), 1);
        assert_eq!(failures("sys/src/a.rs", "unsafe { x() }"), [""; 0]);
        assert_eq!(failures("agent/src/a.rs", "// unsafe\nlet unsafe_x = \"unsafe\";"), [""; 0]);
    }

    #[test]
    fn a_lint_that_holds_the_line_cannot_be_lifted() {
        let found = failures("spec/src/a.rs", "#[allow(clippy::too_many_lines)]\nfn f() {}");
        assert_eq!(found, ["spec/src/a.rs:1: clippy::too_many_lines is final"]);
    }

    #[test]
    fn a_library_does_not_print_and_a_program_may() {
        assert_eq!(failures("spec/src/a.rs", "println!()").len(), 1);
        assert_eq!(failures("runtime/src/a.rs", "println!()"), [""; 0]);
    }

    #[test]
    fn sleeping_is_for_tests() {
        assert_eq!(failures("shim/src/a.rs", "thread::sleep(x);").len(), 1);
        assert_eq!(failures("shim/src/a.rs", "#[cfg(test)]\nthread::sleep(x);"), [""; 0]);
        assert_eq!(failures("tests/guest/src/a.rs", "thread::sleep(x);"), [""; 0]);
    }

    #[test]
    fn a_deadline_and_a_stated_reason_are_no_waiting() {
        assert_eq!(failures("shim/src/a.rs", "() = tokio::time::sleep(limit) => x,"), [""; 0]);
        assert_eq!(failures("shim/src/a.rs", "// Time is measured.\nsleep(x);"), [""; 0]);
        assert_eq!(failures("shim/src/a.rs", "// Time is measured.\n\nsleep(x);").len(), 1);
    }

    #[test]
    fn the_agent_does_not_expect() {
        assert_eq!(failures("agent/src/a.rs", "x.expect(\"y\")").len(), 1);
        assert_eq!(failures("agent/src/a.rs", "#[expect(clippy::exit, reason = \"y\")]"), [""; 0]);
        assert_eq!(failures("shim/src/a.rs", "x.expect(\"y\")"), [""; 0]);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        assert_eq!(failures("shim/src/utils.rs", "").len(), 1);
        assert_eq!(failures("shim/src/types/mod.rs", "").len(), 1);
        assert_eq!(failures("shim/src/baseline.rs", ""), [""; 0]);
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_unless_it_is_a_table() {
        let long = "\n".repeat(MOST_LINES + 1);
        assert_eq!(failures("shim/src/a.rs", &long).len(), 1);
        assert_eq!(failures("shim/src/a.rs", &format!("// tidy: table\n{long}")), [""; 0]);
    }
}
