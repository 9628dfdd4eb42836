//! `check --repair`: what is left of sandboxes whose shim is gone.
//!
//! What the ledger of such a sandbox names is taken away. Its record stays, for an engine will ask how its container ended,
//! and will delete it; a sandbox that never had a container nobody asks for, so it goes altogether.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use kata_store::Store;

use super::Context;
use crate::{
    failure::Failure, id::ContainerId, offline, sandbox_dir::SandboxDir, shim_client::is_there,
};

/// A directory so young may be a sandbox in the making, whose shim is not there yet.
const MAKING: Duration = Duration::from_secs(60);

/// What was put in order, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    pub(super) sandboxes: usize,
    pub(super) stored: usize,
    pub(super) problems: Vec<String>,
}

impl Context<'_> {
    pub(super) fn repair(&self, store: &Path) -> Repaired {
        let mut repaired = Repaired::default();
        match self.root.ids() {
            Ok(ids) => {
                for id in ids {
                    match self.repair_sandbox(&id) {
                        Ok(done) => repaired.sandboxes += usize::from(done),
                        Err(failure) => repaired.problems.push(format!("{id}: {}", failure.line())),
                    }
                }
            }
            Err(failure) => repaired.problems.push(failure.line()),
        }
        let swept = Store::existing(store).and_then(|store| store.map_or(Ok(0), |s| s.sweep()));
        match swept {
            Ok(count) => repaired.stored = count,
            Err(source) => {
                let failure = Failure::Store(source);
                repaired.problems.push(failure.line());
            }
        }
        repaired
    }

    /// True when there was something to do.
    fn repair_sandbox(&self, id: &ContainerId) -> Result<bool, Failure> {
        let dir = match self.root.open(id) {
            // Deleted meanwhile.
            Err(Failure::Unknown { .. }) => return Ok(false),
            dir => dir?,
        };
        if is_there(&dir) || is_young(&dir) {
            return Ok(false);
        }
        if dir.record()?.is_none() {
            return self.remove(&dir, id, true).map(|()| true);
        }
        if !dir.path.join("ledger").exists() {
            return Ok(false);
        }
        offline::repair(&self.prefix, &dir).map(|()| true)
    }
}

fn is_young(dir: &SandboxDir) -> bool {
    let made = std::fs::metadata(&dir.path).and_then(|found| found.modified());
    let record = dir.path.join("state.json").exists();
    !record
        && made
            .is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age < MAKING))
}
