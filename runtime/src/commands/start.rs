//! `start`: the program runs, and the hooks that follow it have run.

use super::Context;
use crate::{
    failure::Failure,
    hooks::{self, Owed},
    id::ContainerId,
    sandbox_dir::SandboxDir,
};

impl Context<'_> {
    pub(super) fn start(&self, id: &ContainerId) -> Result<(), Failure> {
        self.with_shim(id, async |shim| shim.start().await)?;
        match self.root.open(id) {
            // Deleted by somebody else: there is no container that hooks could be about.
            Err(Failure::Unknown { .. }) => Ok(()),
            dir => self.after_start(&dir?, id),
        }
    }

    /// Runs the hooks that follow a start. The container runs already: what fails of them is a warning.
    pub(super) fn after_start(&self, dir: &SandboxDir, id: &ContainerId) -> Result<(), Failure> {
        let Some(owed) = Owed::read(dir)? else { return Ok(()) };
        let record = self.record(dir, id)?;
        hooks::warn(self.journal, owed.poststart(record.pid));
        Ok(())
    }
}
