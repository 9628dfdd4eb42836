//! QEMU's machine protocol: JSON lines over a socket that was made before QEMU.
//!
//! One task owns the socket. Callers send it commands and wait for their answers, each with a deadline; events go to
//! whoever subscribed. When the socket ends or says what is not the protocol, all open commands fail, and all later
//! ones. QEMU is behind the jail's wall: lines are bounded, the queue of events drops its oldest.

mod client;
mod message;

use std::time::Duration;

pub use client::Qmp;
pub use message::{Event, Message, MessageError, ShutdownReason};

/// A command that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection is over.
    #[error("the monitor is closed")]
    Closed,
    /// No answer.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// QEMU refused.
    #[error("{class}: {description}")]
    Refused {
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        description: String,
    },
}
