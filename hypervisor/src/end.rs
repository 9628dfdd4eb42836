//! How a VM ends, and what can go wrong before.

use std::{fmt, io, path::PathBuf, time::Duration};

use kata_sys::spawn::SpawnError;

use crate::{elf::ElfError, qmp::QmpError};

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEnd {
    /// By [`stop`](crate::Hypervisor::stop).
    Stopped,
    /// The guest kernel panicked; its last words.
    GuestPanic(String),
    /// PID 1 of the guest ended, so the guest kernel gave up; its last words.
    AgentDied(String),
    /// The guest restarted itself.
    GuestReset,
    /// The guest switched itself off.
    GuestOff,
    /// A signal ended the VMM, and it was not ours.
    VmmKilled {
        /// Which signal.
        signal: i32,
    },
    /// The VMM gave up by itself.
    VmmExited {
        /// Its exit code.
        code: i32,
        /// The last of what it wrote to stderr.
        stderr: String,
    },
}

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::GuestPanic(text) => write!(f, "guest kernel panicked: {}", text.trim()),
            Self::AgentDied(text) => write!(f, "agent died in the guest: {}", text.trim()),
            Self::GuestReset => f.write_str("guest restarted itself"),
            Self::GuestOff => f.write_str("guest switched itself off"),
            Self::VmmKilled { signal } => write!(f, "VMM was killed by signal {signal}"),
            Self::VmmExited { code, stderr } if stderr.trim().is_empty() => {
                write!(f, "VMM exited with code {code}")
            }
            Self::VmmExited { code, stderr } => {
                write!(f, "VMM exited with code {code}: {}", stderr.trim())
            }
        }
    }
}

/// An operation on a VM that failed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The VM is not in a state for it.
    #[error("cannot {operation} a VM that {state}")]
    State {
        /// What was asked for.
        operation: &'static str,
        /// What the VM did.
        state: &'static str,
    },
    /// A file that the VM needs.
    #[error("cannot use {what} {}", .path.display())]
    File {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Firmware that the VMM would open.
    #[error("no firmware {name} beside the VMM {}", .vmm.display())]
    Firmware {
        /// File name.
        name: &'static str,
        /// The VMM.
        vmm: PathBuf,
    },
    /// The VMM's libraries.
    #[error("cannot tell which libraries the VMM needs")]
    Libraries(#[source] ElfError),
    /// The configuration asks for what this hypervisor or machine lacks.
    #[error("{0}")]
    Unsupported(String),
    /// Sockets, pipes or the jail's specification.
    #[error("cannot prepare {what} of the VMM")]
    Prepare {
        /// What was being made.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The process.
    #[error("cannot start the VMM")]
    Spawn(#[source] SpawnError),
    /// It ended before the guest could run.
    #[error("VM did not boot: {0}")]
    Boot(VmEnd),
    /// It did not get as far in time.
    #[error("VM did not boot within {0:?}")]
    BootDeadline(Duration),
    /// A command to the VMM.
    #[error("VMM did not {operation}")]
    Command {
        /// What it should have done.
        operation: &'static str,
        /// Why it did not.
        source: QmpError,
    },
    /// Killing the VMM.
    #[error("cannot kill the VMM")]
    Kill(#[source] io::Error),
}
