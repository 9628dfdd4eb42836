//! `linux.resources`: limits and device rules.

use serde::Deserialize;

use super::{StringMap, null_is_default};

/// What a container may use.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    #[serde(deserialize_with = "null_is_default")]
    pub devices: Vec<DeviceRule>,
    pub memory: Option<Memory>,
    pub cpu: Option<Cpu>,
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    #[serde(deserialize_with = "null_is_default")]
    pub hugepage_limits: Vec<HugepageLimit>,
    #[serde(deserialize_with = "null_is_default")]
    pub unified: StringMap,
}

/// Allows or denies access to devices; an absent number or type means any.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: Option<String>,
    /// As [`super::Device::disk`].
    pub disk: Option<String>,
}

/// Bytes; -1 is no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    /// Memory and swap together, as cgroup v1 counted.
    pub swap: Option<i64>,
    pub check_before_update: bool,
}

/// CPU time; shares are those of cgroup v1.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub burst: Option<u64>,
    pub period: Option<u64>,
    pub idle: Option<i64>,
    /// As the host numbers them.
    pub cpus: Option<String>,
    /// Likewise.
    pub mems: Option<String>,
}

/// Number of tasks; 0 is not set, and what is below is no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pids {
    pub limit: Option<i64>,
}

/// Input and output; what is said of single devices is of the host's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    pub weight: Option<u16>,
}

/// Bytes of huge pages of one size (`2MB`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}
