//! Sandboxes of the command line that nobody comes back for: the shim is the one that is left to know.
//!
//! ```text
//! creator gone ─┬─ no container came to be ────────────────► give_up ───┬─► nothing
//!               └─ it is created, neither confirmed nor started ► take_back ─┘
//! container ended ── nobody deletes it for a while ────────► leave ─────► its record
//! ```
//!
//! A container that was confirmed, or runs, is its engine's for as long as that leaves it so, as runc's is. Where hooks have run that
//! others have to follow, a record stays for whoever deletes the container and runs those.

use std::sync::{Arc, atomic::Ordering};

use kata_engine_api::record::HOOKS_FILE;
use kata_sandbox::{
    ledger::{self, Inmates},
    lifecycle::SandboxError,
    step::Steps,
};
use kata_sys::{causes::chain, descriptor::is_at};
use rustix::{
    fs::{AtFlags, CWD, unlinkat},
    io::Errno,
};

use super::Service;
use crate::{
    container::Container,
    process::{Phase, SIGKILL},
};

impl Service {
    /// Waits for the end of a container, and leaves its record when nobody deletes it.
    pub async fn outlive(self: Arc<Self>, container: Arc<Container>) {
        let Ok(loaded) = &self.configuration else { return };
        container.init().wait().await;
        // An engine that is well deletes within moments, and is served faster with a shim than without.
        tokio::time::sleep(loaded.config.runtime.linger).await;
        // All of its own has ended; another container may have been given the same control group since.
        self.leave(&container, Inmates::Spare).await;
    }

    /// Takes away everything of a sandbox whose container has ended, but for what `state` and `delete` go by, and ends the shim.
    async fn leave(&self, container: &Container, inmates: Inmates) {
        let _only_one = self.changing.lock().await;
        if !self.has_container() {
            return;
        }
        tracing::info!("nobody has deleted the container: its record is left");
        container.hear_the_last().await;
        container.catch_up();
        match container.sandbox().tear_down(inmates).await {
            // What it names may be another sandbox's by the time of the delete.
            Ok(()) => match unlinkat(&self.directory_fd, ledger::FILE, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => tracing::warn!(%error, "remove the ledger"),
            },
            Err(error) => tracing::warn!(%error, "the ledger is left to delete"),
        }
        self.finished.notify_one();
    }

    /// Takes away a container whose creator has gone before anybody knew of it; one that was started is known.
    pub async fn take_back(&self, container: &Arc<Container>) {
        let init = container.init();
        // It is not started meanwhile: a shim has one thread, and what is created ends before the first wait.
        if init.phase() != Phase::Created {
            return;
        }
        tracing::warn!("whoever created the container is gone, and has told nobody of it");
        let taken = match container.signal(init, SIGKILL, true).await {
            Ok(()) if self.owes_hooks() => {
                self.leave(container, Inmates::Kill).await;
                Ok(())
            }
            Ok(()) => self.delete_and_finish(&init.container_id).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = taken {
            tracing::warn!(message = refusal.message, "take the container back");
        }
    }

    /// Returns once a container has failed to come to be.
    pub async fn unmade(&self) {
        self.unmade.notified().await;
    }

    /// Hooks have run that others have to follow.
    fn owes_hooks(&self) -> bool {
        self.directory.join(HOOKS_FILE).exists()
    }

    /// Takes away a sandbox that never got a container.
    pub fn give_up(&self) {
        tracing::warn!("whoever started this shim is gone, and left no container");
        // A request that was under way may have begun one.
        self.undo();
        if self.ledger_is_owed() || self.owes_hooks() {
            return;
        }
        if let Err(refusal) = self.remove_directory() {
            tracing::warn!(message = refusal.message, "give up");
        }
    }

    /// Takes away what a sandbox without a container has left. What can't be is still in the ledger, which stays for it.
    pub(super) fn undo(&self) {
        let sandbox = self.pod().sandbox.take();
        let undone = match sandbox {
            Some(sandbox) => sandbox.undo(),
            None => ledger::replay(&self.directory, &Steps::default()).map_err(SandboxError::from),
        };
        self.ledger_owed.store(undone.is_err(), Ordering::Relaxed);
        if let Err(error) = undone {
            tracing::warn!(error = chain(&error), "undo a failed create");
        }
    }

    /// Whether the path leads to this sandbox's directory, and not to one of another that was made by the same name.
    pub(super) fn is_in_place(&self) -> bool {
        is_at(&self.directory_fd, CWD, &self.directory)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd, sync::Arc};

    use kata_config::Loaded;
    use kata_sandbox::ledger;

    use super::Service;

    #[test]
    fn a_ledger_that_cannot_be_replayed_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("sandbox");
        fs::create_dir(&directory).unwrap();
        let open: OwnedFd = fs::File::open(&directory).unwrap().into();
        let service = Service::new(directory.clone(), Arc::new(open), Ok(Loaded::default()));
        let ledger = directory.join(ledger::FILE);
        fs::write(&ledger, "of another version\n").unwrap();
        service.give_up();
        assert!(ledger.exists() && !service.is_torn_down());
        fs::write(&ledger, "").unwrap();
        service.give_up();
        assert!(!directory.exists() && service.is_torn_down());
    }
}
