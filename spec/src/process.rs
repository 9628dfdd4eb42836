//! `process`, of a container or of exec.

mod scheduling;

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    checked::TerminalSize,
    document::Document,
    error::SpecError,
    table::{CAPABILITIES, PROCESS, join},
};

/// A program to run, with what the host needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedProcess {
    /// The program and its arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute guest path.
    pub cwd: PathBuf,
    /// It has a terminal.
    pub terminal: bool,
    /// `consoleSize`, when there is a terminal and it says one.
    pub terminal_size: Option<TerminalSize>,
    /// What is left out of it, as told to people.
    pub warnings: Vec<String>,
    /// The object as the guest gets it.
    pub(crate) guest: Value,
}

impl CheckedProcess {
    /// The OCI process object for the agent.
    pub fn guest_process(&self) -> Vec<u8> {
        self.guest.to_string().into_bytes()
    }

    /// `oomScoreAdj`.
    pub fn oom_score_adj(&self) -> Option<i16> {
        self.guest["oomScoreAdj"].as_i64().and_then(|score| i16::try_from(score).ok())
    }

    /// Value of a variable of its environment; the last one counts.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = |pair: &'_ String| pair.split_once('=').is_some_and(|(key, _)| key == name);
        let pair = self.env.iter().rfind(|pair| value(pair))?;
        pair.split_once('=').map(|(_, value)| value)
    }
}

/// Checks the process object of an exec; `name` says in errors what the document is.
///
/// # Errors
/// As [`crate::load`].
pub fn parse_process(json: &[u8], name: &str) -> Result<CheckedProcess, SpecError> {
    let mut document = Document::new(name.to_owned());
    let value = document.parse(json)?;
    let guest = document.object(PROCESS, &value, "")?;
    let process = check(&mut document, guest, "")?;
    Ok(CheckedProcess { warnings: document.warnings, ..process })
}

/// What rows can't say about a process that is at `path` of the document.
pub(crate) fn check(
    document: &mut Document,
    mut guest: Value,
    path: &str,
) -> Result<CheckedProcess, SpecError> {
    let args = strings(&guest["args"]);
    if args.is_empty() {
        return Err(document.wrong(join(path, "args"), "must name a program"));
    }
    let cwd = PathBuf::from(guest["cwd"].as_str().unwrap_or_default());
    if !cwd.is_absolute() {
        return Err(document.wrong(join(path, "cwd"), "must be an absolute path"));
    }
    let env = strings(&guest["env"]);
    let nameless = |pair: &String| pair.find('=').is_none_or(|at| at == 0);
    if let Some(index) = env.iter().position(nameless) {
        // Not shown: it may be a secret.
        return Err(document.wrong(join(path, &format!("env[{index}]")), "must be NAME=value"));
    }
    check_rlimits(document, &guest, path)?;
    scheduling::check(document, &guest, path)?;
    drop_unknown_capabilities(document, &mut guest, path);
    warn_of_ambient_capabilities(document, &guest);
    let terminal = guest["terminal"] == json!(true);
    let terminal_size = terminal_size(&guest["consoleSize"]).filter(|_| terminal);
    let warnings = Vec::new();
    Ok(CheckedProcess { args, env, cwd, terminal, terminal_size, warnings, guest })
}

fn check_rlimits(document: &Document, guest: &Value, path: &str) -> Result<(), SpecError> {
    let limits = guest["rlimits"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, limit) in limits.iter().enumerate() {
        let field = join(path, &format!("rlimits[{index}]"));
        if limit["soft"].as_u64() > limit["hard"].as_u64() {
            return Err(document.wrong(field, "soft must not exceed hard"));
        }
        if limits[..index].iter().any(|earlier| earlier["type"] == limit["type"]) {
            return Err(document.wrong(field, format!("{} is set twice", limit["type"])));
        }
    }
    Ok(())
}

/// runc warns of capabilities that it does not know, in these words, and goes on without: engines are newer or older than
/// their runtime.
fn drop_unknown_capabilities(document: &mut Document, guest: &mut Value, path: &str) {
    let Some(sets) = guest["capabilities"].as_object_mut() else { return };
    // Each of five sets may name it.
    let mut unknown = BTreeSet::new();
    for (set, names) in sets {
        let Some(names) = names.as_array_mut() else { continue };
        let (known, dropped) = names.drain(..).partition::<Vec<_>, _>(|name| {
            name.as_str().is_some_and(|name| CAPABILITIES.contains(&name))
        });
        *names = known;
        for name in &dropped {
            let field = join(path, &format!("capabilities.{set}"));
            document.translate(field, format!("unknown capability {name} is left out"));
        }
        unknown.extend(strings(&Value::Array(dropped)));
    }
    if !unknown.is_empty() {
        let unknown = unknown.into_iter().collect::<Vec<_>>().join(" ");
        let warning = format!("ignoring unknown or unavailable capabilities: [{unknown}]");
        document.warnings.push(warning);
    }
}

/// A kernel raises those alone that are permitted and inheritable. runc goes on without the others, with these words.
fn warn_of_ambient_capabilities(document: &mut Document, guest: &Value) {
    let set = |name: &str| strings(&guest["capabilities"][name]);
    let (permitted, inheritable) = (set("permitted"), set("inheritable"));
    for name in set("ambient") {
        if !permitted.contains(&name) || !inheritable.contains(&name) {
            let warning = format!("can't raise ambient capability {name}: operation not permitted");
            document.warnings.push(warning);
        }
    }
}

fn terminal_size(size: &Value) -> Option<TerminalSize> {
    let number = |name: &str| u16::try_from(size[name].as_u64()?).ok().filter(|number| *number > 0);
    Some(TerminalSize { rows: number("height")?, columns: number("width")? })
}

pub(crate) fn strings(list: &Value) -> Vec<String> {
    let elements = list.as_array().into_iter().flatten();
    elements.filter_map(|element| element.as_str().map(str::to_owned)).collect()
}
