//! The record of a sandbox on disk (`state.json`), and how things end.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::timestamp::{parse_rfc3339, rfc3339};

/// File name of the [`Record`], written by the shim.
pub const RECORD_FILE: &str = "state.json";

/// File name of the [`EndNote`], written by the monitor.
pub const END_FILE: &str = "end.json";

/// File name of the hooks that are still to be run, written by the runtime. A sandbox that has it must not be forgotten
/// before somebody has run them.
pub const HOOKS_FILE: &str = "hooks.json";

/// File name of the shim's log.
pub const LOG_FILE: &str = "shim.log";

/// Why a process ended. Only [`Cause::Exited`] may go with exit code 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself.
    Exited,
    /// By a signal.
    Signaled,
    /// Killed while created and never started.
    KilledBeforeStart,
    /// Killed by `delete --force`.
    Deleted,
    /// By the guest's OOM killer, for its own limit.
    Oom,
    /// The guest as a whole was out of memory.
    GuestOom,
    /// The guest kernel panicked.
    GuestPanic,
    /// The guest restarted itself or switched itself off.
    GuestReset,
    /// The guest did not end what it was told to kill, which ended its VM.
    GuestStuck,
    /// The guest hung: it answered nobody, which ended its VM.
    GuestSilent,
    /// Somebody killed the VMM.
    VmmKilled,
    /// The VMM died by itself.
    VmmCrashed,
    /// The host's OOM killer killed VMM or proxy.
    HostOom,
    /// Somebody killed the proxy.
    ProxyKilled,
    /// The proxy died by itself.
    ProxyCrashed,
    /// The agent closed its connection while the VM lived.
    AgentLost,
    /// The shim died or was killed.
    ShimLost,
    /// The monitor was killed, which kills its container.
    MonitorKilled,
    /// The VM never came up.
    BootFailed,
    /// It could not be started, though the VM came up.
    StartFailed,
    /// Nobody can say.
    Unknown,
}

impl Cause {
    /// Whether what the guest's kernel last said may tell more: the application is not what ended.
    pub fn is_of_the_sandbox(self) -> bool {
        !matches!(
            self,
            Self::Exited
                | Self::Signaled
                | Self::KilledBeforeStart
                | Self::Deleted
                | Self::Oom
                | Self::ShimLost
                | Self::MonitorKilled
        )
    }

    /// Whether memory ran out, of the container, the guest or the host: engines have one word for it.
    pub fn is_out_of_memory(self) -> bool {
        matches!(self, Self::Oom | Self::GuestOom | Self::HostOom)
    }

    /// As shown to people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signaled => "ended by a signal",
            Self::KilledBeforeStart => "killed before it was started",
            Self::Deleted => "killed by delete",
            Self::Oom => "killed by the guest's OOM killer",
            Self::GuestOom => "the guest was out of memory",
            Self::GuestPanic => "guest kernel panicked",
            Self::GuestReset => "guest restarted itself",
            Self::GuestStuck => "guest did not end what was killed",
            Self::GuestSilent => "guest hung",
            Self::VmmKilled => "VMM was killed",
            Self::VmmCrashed => "VMM crashed",
            Self::HostOom => "the host's OOM killer killed the VM",
            Self::ProxyKilled => "proxy was killed",
            Self::ProxyCrashed => "proxy crashed",
            Self::AgentLost => "agent was lost",
            Self::ShimLost => "shim was lost",
            Self::MonitorKilled => "monitor was killed",
            Self::BootFailed => "VM did not boot",
            Self::StartFailed => "could not be started",
            Self::Unknown => "unknown",
        }
    }
}

/// The end of a container, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code, or 128 + signal.
    pub code: u8,
    /// Why.
    pub cause: Cause,
    /// What is known beyond the cause: the last lines of a panicking guest, a signal's name.
    pub detail: Option<String>,
    /// RFC 3339, UTC.
    pub at: String,
    /// The step of the start that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The last that the guest's kernel wrote to its console, at most 4 KiB, when the cause is not the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
}

impl Ended {
    /// An end of this moment.
    pub fn new(code: u8, cause: Cause, detail: Option<String>) -> Self {
        let at = rfc3339(SystemTime::now());
        Self { code, cause, detail, at, step: None, console: None }
    }

    /// When it was.
    pub fn at(&self) -> SystemTime {
        // Nobody but this program writes it.
        parse_rfc3339(&self.at).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// OCI's container states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made; no user code has run.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

impl Status {
    /// OCI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// `state.json`: a sandbox with one container, as the OCI command line sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the OCI runtime spec that the state follows, whatever the config's.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// State.
    pub status: Status,
    /// Pid of the monitor; 0 once stopped.
    pub pid: u32,
    /// Host path of the bundle.
    pub bundle: String,
    /// Host path of the root file system.
    pub rootfs: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// User id of whoever created it.
    pub owner_uid: u32,
    /// From the config.
    pub annotations: BTreeMap<String, String>,
    /// How it ended.
    pub ended: Option<Ended>,
    /// Pid of the shim.
    pub shim_pid: u32,
    /// Pid of the VMM, once booted.
    pub vmm_pid: Option<u32>,
    /// Pid of the proxy, once booted.
    pub proxy_pid: Option<u32>,
    /// The resources that it has, as the last `create` or `update` asked for them.
    #[serde(default)]
    pub resources: serde_json::Value,
    /// Hypervisor, machine type, accelerator, kernel, and why each was chosen; shown by `state`.
    pub sandbox: BTreeMap<String, String>,
}

/// `end.json`: what a monitor writes when its shim is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndNote {
    /// The end.
    pub ended: Ended,
}
