//! `start`: the program runs, and the hooks that follow it have run.

use std::os::fd::OwnedFd;

use kata_engine_api::record::Status;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::Context;
use crate::{failure::Failure, hooks, id::ContainerId, sandbox_dir::SandboxDir};

/// So long a monitor may take to end whose container did not come up.
const ENDING: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

impl Context<'_> {
    pub(super) fn start(&self, id: &ContainerId) -> Result<(), Failure> {
        let monitor = self.monitor_of(id);
        let refused = "cannot start a container that has stopped";
        let started = self.with_shim(id, refused, async |shim| shim.start().await);
        if started.is_err() {
            await_end(monitor);
        }
        started?;
        match self.root.open(id) {
            // Deleted by somebody else: there is no container that hooks could be about.
            Err(Failure::Unknown { .. }) => Ok(()),
            dir => self.after_start(&dir?, id),
        }
    }

    /// The process that stands for a container that was created, if there is one.
    fn monitor_of(&self, id: &ContainerId) -> Option<OwnedFd> {
        let dir = self.root.open(id).ok()?;
        // The shim need not be asked whether it lives: if it does not, the start says so.
        let record = dir.record().ok().flatten();
        let record = record.filter(|record| record.status == Status::Created)?;
        let pid = Pid::from_raw(i32::try_from(record.pid).ok()?)?;
        pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    /// Runs the hooks that follow a start. The container runs already: what fails of them is a warning.
    pub(super) fn after_start(&self, dir: &SandboxDir, id: &ContainerId) -> Result<(), Failure> {
        let Some(owed) = hooks::read(dir)? else { return Ok(()) };
        let record = self.record(dir, id)?;
        hooks::warn(self.journal, owed.poststart(record.pid));
        Ok(())
    }
}

/// A container whose start failed has ended, and engines ask at once for what is left of it: they must find its process dead.
fn await_end(monitor: Option<OwnedFd>) {
    let Some(monitor) = monitor else { return };
    // One that lives on, or can't be waited for, is the engine's to kill.
    poll(&mut [PollFd::new(&monitor, PollFlags::IN)], Some(&ENDING)).ok();
}
