//! The parts of the OCI runtime specification that the guest applies.
//!
//! Own types, because those of the published crate cost half of the agent's size. Unknown fields are left to the host,
//! which has checked the whole document; a known field of the wrong type is an error.

mod hooks;
mod linux;
mod process;
mod resources;
mod seccomp;

use std::collections::BTreeMap;

pub use hooks::Hooks;
pub use linux::{Device, IdMapping, Linux, NamespaceKind, Personality, Shared};
pub use process::{Capabilities, Process, Rlimit, Scheduler, User};
pub use resources::{Cpu, DeviceRule, Memory, Resources};
pub use seccomp::{Seccomp, SyscallArgument, SyscallRule};
use serde::Deserialize;

/// `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub process: Option<Process>,
    pub root: Option<Root>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    pub linux: Option<Linux>,
    pub hooks: Option<Hooks>,
}

/// `root`; its path is the business of the host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub readonly: bool,
}

/// One of `mounts`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}

/// `sysctl`, `unified` and the like.
pub type StringMap = BTreeMap<String, String>;

/// Engines write `null` where they mean an empty list.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
