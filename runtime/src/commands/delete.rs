//! `delete`: nothing is left of a container.

use std::{os::fd::OwnedFd, time::Duration};

use kata_engine_api::{
    handover::FailureKind,
    record::{Ended, Status},
};
use kata_sys::watch::watch;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal as KillSignal, pidfd_open, pidfd_send_signal},
};
use tokio::{io::Interest, time::timeout};

use super::{Context, state::has_unnoticed_end};
use crate::{
    args::Delete,
    failure::Failure,
    hooks::{self, Claim},
    id::ContainerId,
    offline,
    sandbox_dir::SandboxDir,
    shim_client::{IMPATIENCE, PATIENCE, ShimClient, block_on, is_there},
};

/// A container that was sent SIGKILL has ended by then, or its guest is hung and goes with its VM.
const END: Duration = Duration::from_secs(5);

/// A shim that has answered Delete has nothing left to do.
const EXIT: Duration = Duration::from_secs(1);

impl Context<'_> {
    pub(super) fn delete(&self, typed: &Delete) -> Result<(), Failure> {
        let dir = match self.root.open(&typed.id) {
            // Engines call it again after a success, and after a create that failed.
            Err(Failure::Unknown { .. }) if typed.force => return Ok(()),
            dir => dir?,
        };
        self.remove(&dir, &typed.id, typed.force)
    }

    /// Removes a container; one that runs only when `force`d.
    pub(super) fn remove(
        &self,
        dir: &SandboxDir,
        id: &ContainerId,
        force: bool,
    ) -> Result<(), Failure> {
        let claim = Claim::wait_for(dir)?;
        let by_shim = block_on(remove_by_shim(dir, id, force));
        match by_shim {
            // One that died over it took the sandbox along: what is left is for the one-shot command.
            Err(Failure::Call { .. }) if has_gone(dir, id) => {}
            Err(failure) if !force => return Err(failure),
            Err(failure) => {
                self.journal.debug(&format!("delete: {}", failure.line()));
                // It can't do it, and is in the way of whoever does it instead. VMM and proxy end with it.
                end_shim(dir);
            }
            Ok(ended) => {
                if let Some(ended) = ended {
                    self.journal.debug(&format!("delete: {id}: {}", ended.cause.describe()));
                }
            }
        }
        if !dir.is_gone() {
            offline::delete(&self.prefix, dir)?;
        }
        self.root.tidy_up();
        if let Some(claim) = claim {
            hooks::warn(self.journal, claim.owed.poststop());
        }
        Ok(())
    }
}

/// What a live shim does of it; without one nothing is done. Returns how the container ended, when that was waited for.
async fn remove_by_shim(
    dir: &SandboxDir,
    id: &ContainerId,
    force: bool,
) -> Result<Option<Ended>, Failure> {
    // One that hangs is killed, so why wait for it.
    let patience = if force { IMPATIENCE } else { PATIENCE };
    let Some(shim) = ShimClient::find(dir, id, patience).await? else { return Ok(None) };
    let record = dir.record()?;
    // Taken while it lives for certain, so that it is no other process of the same number.
    let process = record.as_ref().and_then(|record| pidfd(record.shim_pid));
    // In a created one nothing runs that could be lost.
    let created = record.as_ref().is_some_and(|record| record.status == Status::Created);
    if force || created {
        // One that has ended already refuses the signal.
        shim.kill_for_delete().await.ok();
    }
    let mut ended = None;
    if force || created || record.as_ref().is_some_and(has_unnoticed_end) {
        // Delete finds out whether it has.
        ended = timeout(END, shim.wait()).await.ok().and_then(Result::ok).flatten();
    }
    match shim.delete().await {
        // Whoever made the shim was killed before it handed a container over.
        Err(Failure::Refused { kind: FailureKind::NotFound, .. }) if force => {
            shim.shut_down().await?;
        }
        deleted => deleted.map_err(|failure| still_running(failure, dir, id))?,
    }
    if let Some(process) = process {
        let process =
            watch(process, Interest::READABLE).map_err(Failure::host("wait for the shim"))?;
        // Whatever it is still busy with, the directory tells whether it has done its work.
        timeout(EXIT, process.readable()).await.ok();
    }
    Ok(ended)
}

/// It has ended, or is about to.
fn has_gone(dir: &SandboxDir, id: &ContainerId) -> bool {
    block_on(ShimClient::find(dir, id, IMPATIENCE)).is_ok_and(|shim| shim.is_none())
}

/// Kills a shim that did not obey, and waits until it is gone.
fn end_shim(dir: &SandboxDir) {
    // Only while it is there is the recorded number its own for certain.
    let record = if is_there(dir) { dir.record().ok().flatten() } else { None };
    let Some(process) = record.and_then(|record| pidfd(record.shim_pid)) else { return };
    // Gone meanwhile is what is wanted; one in the middle of a system call gets a second.
    pidfd_send_signal(&process, KillSignal::KILL).ok();
    let ceiling = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ceiling)).ok();
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// In runc's words.
fn still_running(failure: Failure, dir: &SandboxDir, id: &ContainerId) -> Failure {
    match failure {
        Failure::Refused { kind: kind @ FailureKind::FailedPrecondition, message } => {
            let status = dir.record().ok().flatten().map(|record| record.status.name().to_owned());
            let status = status.unwrap_or(message);
            let message = format!("cannot delete container {id} that is not stopped: {status}");
            Failure::Refused { kind, message }
        }
        other => other,
    }
}
