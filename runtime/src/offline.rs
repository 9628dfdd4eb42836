//! The shim's one-shot commands, for a sandbox whose shim is gone: the only other door to its record and ledger.

use std::process::{Command, Stdio};

use kata_config::{Artefact, Prefix};
use kata_engine_api::record::{Record, Status};

use crate::{failure::Failure, sandbox_dir::SandboxDir};

/// What can be done without a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offline {
    /// Finds out how things ended.
    State,
    /// Ends what still lives, and removes all that is left.
    Delete,
    /// The same, but for what is known of the container.
    Repair,
}

impl Offline {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::State => &["offline", "state"],
            Self::Delete => &["offline", "delete"],
            Self::Repair => &["offline", "repair"],
        }
    }
}

/// The record of a sandbox without a shim.
pub fn state(prefix: &Prefix, dir: &SandboxDir) -> Result<Record, Failure> {
    // Whatever became of the shim afterwards: the end is recorded.
    if let Some(record) = dir.record()?.filter(|record| record.status == Status::Stopped) {
        return Ok(record);
    }
    let text = run(prefix, dir, Offline::State)?;
    serde_json::from_slice(&text)
        .map_err(|source| Failure::Record { path: dir.path.clone(), source })
}

/// Removes a sandbox without a shim.
pub fn delete(prefix: &Prefix, dir: &SandboxDir) -> Result<(), Failure> {
    run(prefix, dir, Offline::Delete).map(drop)
}

/// Removes what a sandbox without a shim has left; its record stays.
pub fn repair(prefix: &Prefix, dir: &SandboxDir) -> Result<(), Failure> {
    run(prefix, dir, Offline::Repair).map(drop)
}

fn run(prefix: &Prefix, dir: &SandboxDir, what: Offline) -> Result<Vec<u8>, Failure> {
    let shim = prefix.find(Artefact::Shim)?;
    let output = Command::new(&shim)
        .args(what.arguments())
        .arg("--sandbox-dir")
        .arg(&dir.path)
        .stdin(Stdio::null())
        .output()
        .map_err(Failure::host(format!("run {}", shim.display())))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.trim();
    Err(Failure::ShimLost(match message.is_empty() {
        true => format!("{} {}: {}", shim.display(), what.arguments().join(" "), output.status),
        false => message.to_owned(),
    }))
}
