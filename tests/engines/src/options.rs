//! Every option of an engine has an answer.
//!
//! `options/ENGINE.toml` has a row for each option that the engine's help shows, and the cases that use it. A case is a
//! container that is run with runc and with Kata, whose output and exit code have to be the same, or a refusal.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use crate::{Engine, Kind};

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It has the effect that it has with runc.
    Applied,
    /// It has its effect another way, or within the VM.
    Translated,
    /// The engine does it all by itself.
    Engine,
    /// It is an error, which names what was asked for.
    Refused,
}

/// A row.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What becomes of the option.
    pub is: Answer,
    /// Names of cases that use it; none where there is nothing to run, and `note` says why.
    #[serde(default)]
    pub cases: Vec<String>,
    /// What there is to say.
    #[serde(default)]
    pub note: String,
    /// The release that it came with, if it is not in the earliest one that is tested.
    pub since: Option<String>,
    /// The last release that has it.
    pub until: Option<String>,
}

impl Row {
    /// True when a release shows it.
    pub fn is_of(&self, release: Option<&str>) -> bool {
        self.since.as_deref().is_none_or(|since| Some(since) == release)
            && (self.until.is_none() || release.is_none())
    }
}

/// A container that is run to its end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Options; `{work}` is a directory with what they name, `{name}` a word that is this case's alone,
    /// `{disk}` a block device.
    pub args: Vec<String>,
    /// As [`Row::since`].
    pub since: Option<String>,
    /// Shell script that it runs.
    #[serde(default)]
    pub script: String,
    /// Kata refuses it with these words, before anything runs.
    pub refused: Option<String>,
    /// What Kata's container says where it is not what runc's says, and why.
    pub instead: Option<Instead>,
}

/// An exception.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instead {
    /// Exit code.
    #[serde(default)]
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// The reason.
    pub why: String,
}

/// The table of an engine.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Rows by command and option.
    pub option: BTreeMap<String, BTreeMap<String, Row>>,
    /// Containers to run.
    pub case: Vec<Case>,
    /// Commands in a running container, of this engine's `exec`.
    #[serde(default)]
    pub exec: Vec<Case>,
    /// Changes of a running container, of this engine's `update`.
    #[serde(default)]
    pub update: Vec<Case>,
}

impl Kind {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

impl Table {
    /// Reads the table of an engine.
    pub fn of(kind: Kind) -> Self {
        let text = match kind {
            Kind::Podman => include_str!("../options/podman.toml"),
            Kind::Docker => include_str!("../options/docker.toml"),
        };
        toml::from_str(text).unwrap_or_else(|error| panic!("{}: {error}", kind.name()))
    }

    /// Without the cases that a release of the engine does not know.
    pub fn for_release(mut self, release: Option<&str>) -> Self {
        self.case.retain(|case| case.since.as_deref().is_none_or(|since| Some(since) == release));
        self
    }

    /// What is wrong with the table itself: rows without cases, cases that do not use what they are said to.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (command, rows) in &self.option {
            let cases = match command.as_str() {
                "exec" => &self.exec,
                "update" => &self.update,
                _ => &self.case,
            };
            for (option, row) in rows {
                let at = format!("{command} {option}");
                if row.cases.is_empty() && row.note.is_empty() {
                    faults.push(format!("{at}: neither a case nor a note"));
                }
                if row.is == Answer::Translated && row.note.is_empty() {
                    faults.push(format!("{at}: translated how?"));
                }
                for name in &row.cases {
                    faults.extend(
                        fault_of(row, option, cases.iter().find(|it| it.name == *name))
                            .map(|fault| format!("{at}: {fault} {name}")),
                    );
                }
            }
        }
        faults
    }
}

fn fault_of(row: &Row, option: &str, case: Option<&Case>) -> Option<&'static str> {
    let Some(case) = case else { return Some("there is no case") };
    let uses = |argument: &String| argument.split('=').next() == Some(option);
    if !case.args.iter().any(uses) {
        return Some("it is not used in case");
    }
    // What is refused must be refused on its own.
    (row.is == Answer::Refused && case.refused.is_none()).then_some("nothing is refused in case")
}

/// The options that an engine's help shows for a command.
pub fn shown(engine: &Engine, command: &str) -> Vec<String> {
    options_in(&engine.ok(&[command, "--help"]))
}

fn options_in(help: &str) -> Vec<String> {
    let line = |line: &str| {
        let words = line.trim_start();
        let long = if words.starts_with("--") {
            Some(words)
        } else {
            words.strip_prefix('-')?.get(1..)?.strip_prefix(", ")
        };
        let name = long?
            .strip_prefix("--")?
            .split(|c: char| c != '-' && !c.is_ascii_alphanumeric())
            .next()?;
        Some(format!("--{name}"))
    };
    help.lines().filter_map(line).collect()
}

/// The table as a page, for `docs/compatibility.md`.
pub fn page(kind: Kind) -> String {
    let table = Table::of(kind);
    let mut page = String::new();
    for (command, rows) in &table.option {
        page += &format!("\n### `{} {command}`\n\n| option | | |\n|---|---|---|\n", kind.name());
        for (option, row) in rows {
            let answer = match row.is {
                Answer::Applied => "applied",
                Answer::Translated => "translated",
                Answer::Engine => "the engine's own",
                Answer::Refused => "refused",
            };
            let since = row.since.as_ref().map(|release| format!(" (since {release})"));
            let until = row.until.as_ref().map(|release| format!(" (until {release})"));
            let when = since.or(until).unwrap_or_default();
            page += &format!("| `{option}`{when} | {answer} | {} |\n", row.note);
        }
    }
    page
}

/// This crate.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[cfg(test)]
mod tests {
    use super::options_in;

    #[test]
    fn options_are_read_from_the_help_of_both_engines() {
        let podman = "      --add-host strings    Add\n  -a, --attach strings      Attach to --all\nUsage: x --y\n";
        let docker = "      --cpus decimal                   Number\n  -d, --detach                         Run\n";
        assert_eq!(options_in(podman), ["--add-host", "--attach"]);
        assert_eq!(options_in(docker), ["--cpus", "--detach"]);
    }
}
