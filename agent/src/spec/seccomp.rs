//! `linux.seccomp`: which system calls may be made.

use serde::Deserialize;

use super::null_is_default;

/// A filter as the specification words it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seccomp {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_is_default")]
    pub architectures: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub flags: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub syscalls: Vec<SyscallRule>,
}

/// One action for some system calls, when all arguments match.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyscallRule {
    #[serde(deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_is_default")]
    pub args: Vec<SyscallArgument>,
}

/// A comparison of one argument; for SCMP_CMP_MASKED_EQ `value` is the mask and `value_two` the datum.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyscallArgument {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}
