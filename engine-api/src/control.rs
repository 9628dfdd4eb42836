//! What shim and monitor say on their control socket: JSON, one message a packet.
//!
//! End of the connection, seen by the shim: the monitor is gone, so its container or process is killed. Seen by the
//! monitor before [`ToMonitor::End`]: the shim is gone.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{handover::TerminalSize, record::Cause};

/// From shim to monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToMonitor {
    /// Guest ends of the streams: one descriptor for each kind, in order.
    Streams(Vec<Stream>),
    /// Listeners for what is dialled on localhost of the network namespace: one descriptor each.
    Localhost {},
    /// A dialled connection, whose descriptor comes along; none when the guest refuses it.
    Dialled(u64),
    /// Guest's end of the stream of questions for docker's resolver.
    Resolver {},
    /// The input ends with what the engine has written until now.
    CloseStdin {},
    /// The process has ended; pass on what is left of its output, answer [`ToShim::Drained`], exit.
    End(End),
}

/// Kinds of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Host to guest.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
    /// Both ways.
    Terminal,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Exit code, or 128 + signal.
    pub code: u8,
    /// Why.
    pub cause: Cause,
    /// Bytes of stdout (or the terminal) to pass on before the monitor may exit; none when nobody could count.
    pub stdout_bytes: Option<u64>,
    /// The same of stderr.
    pub stderr_bytes: Option<u64>,
    /// How long, in milliseconds, a stream may be waited for that a descendant holds open.
    pub grace_ms: u64,
}

/// One connection to localhost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// By which [`ToMonitor::Dialled`] answers; each is used once.
    pub number: u64,
    /// What was dialled.
    pub address: SocketAddr,
}

/// From monitor to shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToShim {
    /// A signal that somebody sent to the monitor's pid.
    Signal(i32),
    /// The terminal's new size.
    Resize(TerminalSize),
    /// Somebody dials localhost of the network namespace, and the guest is to take it.
    Dial(Dial),
    /// All output is passed on, or the grace is over. The shim records the end and closes the connection; then the
    /// monitor exits.
    Drained {},
}
