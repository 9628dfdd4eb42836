//! Hooks of the OCI runtime specification: programs of the engine that run at fixed moments of a container's life.
//!
//! [`run_all`] stops at the first that fails, [`run_each`] goes on; both block, and start no thread. Where the hooks
//! run is the caller's business; [`place::run_in`] makes a place of other namespaces and another working directory.
//! See `docs/design/0003-hooks.md`.

pub mod life;
pub mod place;
mod program;
mod tail;

use std::{collections::BTreeMap, fmt, io, path::PathBuf, time::Duration};

use kata_sys::{
    spawn::{Exit, SpawnError},
    syscall_filter::Filter,
};
use serde::{Deserialize, Serialize};

/// What a hook without a timeout of its own may take: it must not hang its engine.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// The moments of a container's life that have hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The old name of `createRuntime`.
    Prestart,
    /// The environment exists; on the host.
    CreateRuntime,
    /// The same, in the container's namespaces.
    CreateContainer,
    /// Before the program, in the container.
    StartContainer,
    /// The program runs; on the host.
    Poststart,
    /// Nothing is left; on the host.
    Poststop,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// One hook, as the spec has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// argv; the path alone when there is none.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    /// All of its environment; without it, as with runc, the hook has that of whoever runs it.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<u64>,
}

impl Hook {
    /// How long it may take.
    pub fn time(&self) -> Duration {
        self.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs)
    }
}

/// `hooks` of a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Hooks {
    #[serde(deserialize_with = "null_is_default")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub poststop: Vec<Hook>,
}

/// Engines write `null` where they mean an empty list.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// OCI's container states, as far as a hook is run in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made.
    Created,
    /// Started.
    Running,
    /// Ended.
    Stopped,
}

/// The state that a hook reads from its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Of the specification that this state follows.
    pub oci_version: String,
    /// Of the container.
    pub id: String,
    /// Of the moment.
    pub status: Status,
    /// Of the container, as the hook can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Absolute path on the host.
    pub bundle: String,
    /// Of the spec.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{index}")]
pub struct HookError {
    /// Its list.
    pub kind: Kind,
    /// Its place in the list, from 0.
    pub index: usize,
    /// What happened.
    #[source]
    pub fault: Fault,
}

/// How a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be started.
    #[error(transparent)]
    Start(#[from] SpawnError),
    /// Its path, arguments or environment contain a zero byte.
    #[error("path, args or env contain a zero byte")]
    ZeroByte,
    /// It said so. The streams are cut to their ends.
    #[error("{}, stdout: {stdout}, stderr: {stderr}", words(*.exit))]
    Failed {
        /// How it ended.
        exit: Exit,
        /// The end of its standard output.
        stdout: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// It took too long, and was killed.
    #[error("hook ran past specified timeout of {:.1}s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Something of our own: pipes, the state, waiting.
    #[error("cannot {attempted}")]
    Own {
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Fault {
    fn own(attempted: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Own { attempted, source }
    }
}

/// As Go says it: engines show it to people.
fn words(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => {
            let named = SIGNALS.iter().find(|(number, _)| *number == signal);
            named.map_or_else(|| format!("signal {signal}"), |(_, name)| format!("signal: {name}"))
        }
    }
}

/// Go's words for the signals that end programs.
const SIGNALS: [(i32, &str); 17] = [
    (1, "hangup"),
    (2, "interrupt"),
    (3, "quit"),
    (4, "illegal instruction"),
    (5, "trace/breakpoint trap"),
    (6, "aborted"),
    (7, "bus error"),
    (8, "floating point exception"),
    (9, "killed"),
    (11, "segmentation fault"),
    (13, "broken pipe"),
    (14, "alarm clock"),
    (15, "terminated"),
    (24, "CPU time limit exceeded"),
    (25, "file size limit exceeded"),
    (27, "profiling timer expired"),
    (31, "bad system call"),
];

/// Runs hooks in their order, up to the first that fails.
///
/// # Errors
/// The hook that failed.
pub fn run_all(kind: Kind, hooks: &[Hook], state: &State) -> Result<(), HookError> {
    run_all_filtered(kind, hooks, state, &[])
}

/// The same, each under filters of system calls that hold from before its first instruction.
///
/// # Errors
/// The hook that failed.
pub fn run_all_filtered(
    kind: Kind,
    hooks: &[Hook],
    state: &State,
    filters: &[Filter<'_>],
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        program::run(hook, state, filters).map_err(|fault| HookError { kind, index, fault })?;
    }
    Ok(())
}

/// Runs every hook in its turn, whatever became of those before it; returns what is to be warned of.
pub fn run_each(kind: Kind, hooks: &[Hook], state: &State) -> Vec<HookError> {
    let run = |(index, hook)| {
        program::run(hook, state, &[]).err().map(|fault| HookError { kind, index, fault })
    };
    hooks.iter().enumerate().filter_map(run).collect()
}

#[cfg(test)]
mod tests;
