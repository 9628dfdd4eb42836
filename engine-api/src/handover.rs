//! Requests that carry file descriptors: one request and one answer on a connection to `handover.sock`, and one confirmation of
//! what was created. What does not fit
//! into the request's packet follows in as many [`Further`] ones as [`Create::further_packets`] says.
//!
//! A caller that has created a container keeps its connection until somebody knows of the container: it says [`Confirmed`], or
//! starts it. When the connection ends before, the shim takes the container back.
//!
//! Fds of [`Create`], in this order: monitor's control socket, memfd with the checked `config.json`, root tree
//! (`open_tree`), network namespace if [`Create::network_namespace`], then the trees of [`Create::volumes`], which the caller
//! takes because the shim can't see the engine's mounts. Fds of [`Exec`]: control socket, memfd with the OCI process object.

use serde::{Deserialize, Serialize};

/// What is asked of the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make a container; its VM boots when it is started.
    Create(Create),
    /// Run an additional process.
    Exec(Exec),
}

/// Make a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Container id, checked already.
    pub id: String,
    /// Absolute host path of the bundle.
    pub bundle: String,
    /// Pid of the monitor, in the shim's pid namespace.
    pub monitor_pid: u32,
    /// The network namespace came as a descriptor.
    pub network_namespace: bool,
    /// How many trees of volumes came, in the order of the spec's.
    pub volumes: usize,
    /// Packets that follow, with the rest of the descriptors.
    pub further_packets: usize,
    /// Terminal size before the first resize.
    pub terminal_size: Option<TerminalSize>,
    /// The terminal is the caller's own, which makes a line end of a line feed itself.
    pub callers_terminal: bool,
    /// The root is made of these, not of the root tree, which is an empty directory then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
}

/// More descriptors of the request before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Further {}

/// The container is known to whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmed {}

/// An image's layers, of which the container's root is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// Absolute host paths, the uppermost first.
    pub lower: Vec<String>,
    /// Absolute host path of a directory for what the container writes; made by the shim, and removed with the sandbox.
    pub writable: String,
}

/// Run an additional process in a running container; answered when it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Id of the container.
    pub container_id: String,
    /// Id of the process, unique in the container.
    pub exec_id: String,
    /// Pid of the monitor that stands for the process.
    pub monitor_pid: u32,
    /// Terminal size before the first resize.
    pub terminal_size: Option<TerminalSize>,
    /// The terminal is the caller's own, which makes a line end of a line feed itself.
    pub callers_terminal: bool,
    /// When the container is paused, wait until it is resumed.
    pub ignore_paused: bool,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What the shim answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// Done.
    Ok {},
    /// Not done, and nothing is left of it.
    Error(Failure),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// One line for a person: what, where, what to do.
    pub message: String,
}

/// Sorts of failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such container or process.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// The request itself is wrong.
    InvalidArgument,
    /// The program is not there (exit code 127).
    CommandNotFound,
    /// The program may not be executed (exit code 126).
    CommandNotExecutable,
    /// This version does not do it.
    Unimplemented,
    /// Anything else.
    Internal,
}
