//! A process of a guest, as `ProcessInfo.info` of the Task service tells it beside a pid of the host.

use serde::{Deserialize, Serialize};

/// What `ps` shows of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestProcess {
    /// In the guest.
    pub pid: u32,
    /// Likewise.
    pub parent: u32,
    /// Of its user, in the guest.
    pub uid: u32,
    /// CPU time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// Its arguments, or its name in brackets.
    pub command: String,
}

impl GuestProcess {
    /// `type_url` of the message, whose value is JSON.
    pub const TYPE: &'static str = "io.katacontainers.GuestProcess";
}
