//! Containers that join a sandbox, as far as the host's control groups know of them.

use std::error::Error;

use kata_spec::Limits;

use super::{Sandbox, SandboxError};
use crate::{
    cgroup::{self, Group},
    ledger::Entry,
    step::Step,
};

impl Sandbox {
    /// Makes the group of one more container, and puts its monitor there.
    ///
    /// # Errors
    /// [`SandboxError`]; what was made is taken back.
    pub async fn add_member(
        &self,
        id: &str,
        (group, limits): (&Group, &Limits),
        monitor: u32,
    ) -> Result<(), SandboxError> {
        group.must_be_free()?;
        let made = self.make_member(id, (group, limits), monitor);
        if made.is_err()
            && let Err(error) = self.remove_member(id, group).await
        {
            tracing::warn!(%error, id, "take back the control group of a container that could not be made");
        }
        made
    }

    fn make_member(
        &self,
        id: &str,
        (group, limits): (&Group, &Limits),
        monitor: u32,
    ) -> Result<(), SandboxError> {
        for cgroup::Missing { path, own } in group.missing() {
            let entry = if own { Entry::Cgroup { path } } else { Entry::CgroupParent { path } };
            self.ledger.intend(&self.steps, &entry)?;
        }
        self.steps.enter(Step::MakeCgroup)?;
        group.make()?;
        self.steps.enter(Step::LimitCgroup)?;
        group.limit(limits)?;
        self.budget.admit(id, limits)?;
        Ok(group.enter(monitor)?)
    }

    /// Removes the group of such a container.
    ///
    /// # Errors
    /// [`SandboxError::Cgroup`].
    pub async fn remove_member(&self, id: &str, group: &Group) -> Result<(), SandboxError> {
        let released = self.budget.release(id);
        self.rank_without(id);
        // Whatever became of the sum. A process that is stuck in the host's kernel is waited for.
        let (procs, group) = (group.procs(), group.clone());
        let removed = tokio::task::spawn_blocking(move || group.remove()).await;
        removed.map_err(|_| SandboxError::ReplayPanicked)??;
        let is_gone = |entry: &Entry| match entry {
            Entry::Cgroup { path } => procs.contains(&path.join("cgroup.procs")),
            _ => false,
        };
        if let Err(error) = self.ledger.forget(&self.steps, is_gone) {
            let error = &error as &dyn Error;
            tracing::warn!(error, id, "the group of a container that is gone stays in the ledger");
        }
        Ok(released?)
    }
}
