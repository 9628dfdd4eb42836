//! Signals: to a process that runs, that is only created, or whose guest does not answer.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use kata_engine_api::{handover::FailureKind, record::Cause};
use kata_protocol::agent;
use tokio::time::timeout;

use super::{Container, Role};
use crate::{
    failure::Refusal,
    process::{Outcome, Phase, Process, SIGKILL, signal_code},
};

/// The last that there is.
const LAST: u32 = 64;

/// Signals that do not end a process which has installed no handler, as a created container has none: the probe, CHLD,
/// CONT, those that stop, URG, WINCH.
const HARMLESS: [u32; 9] = [0, 17, 18, 19, 20, 21, 22, 23, 28];

/// So long a guest may take to carry out a SIGKILL; then its VM goes.
const STUBBORN: Duration = Duration::from_secs(5);

impl Container {
    /// Sends a signal to a process, or to all of the container's.
    pub async fn signal(
        self: &Arc<Self>,
        process: &Arc<Process>,
        signal: u32,
        all: bool,
    ) -> Result<(), Refusal> {
        if signal > LAST && process.phase() < Phase::Ending {
            let message = format!("unable to signal init: invalid argument: {signal}");
            return Err(Refusal::new(FailureKind::InvalidArgument, message));
        }
        match process.phase() {
            // A probe: it is there.
            Phase::Starting | Phase::Running if signal == 0 => Ok(()),
            Phase::Created if HARMLESS.contains(&signal) => Ok(()),
            Phase::Created => {
                let code = signal_code(signal);
                let outcome = Outcome::unstarted(code, Cause::KilledBeforeStart, None);
                self.conclude(process, outcome).await;
                Ok(())
            }
            // A guest that does not come up answers no signal.
            Phase::Starting if signal == SIGKILL && self.role != Role::Member => {
                self.sandbox.abort_boot();
                Ok(())
            }
            Phase::Starting if process.is_init() => {
                self.early_signals.lock().unwrap_or_else(PoisonError::into_inner).push(signal);
                Ok(())
            }
            Phase::Starting => Err(Refusal::precondition("process is starting")),
            Phase::Running if process.is_init() && self.role == Role::Pod => {
                if !HARMLESS.contains(&signal) {
                    let outcome = Outcome::unstarted(signal_code(signal), Cause::Signaled, None);
                    self.conclude(process, outcome).await;
                }
                Ok(())
            }
            Phase::Running if self.may_take_vm(process) && signal == SIGKILL => {
                let asked = timeout(STUBBORN, self.ask_to_signal(process, signal, all)).await;
                if !matches!(asked, Ok(Ok(()))) {
                    tracing::warn!("guest does not answer to SIGKILL, so its VM is killed");
                    process.note_killed();
                    self.sandbox.kill();
                    return Ok(());
                }
                tokio::spawn(self.clone().insist(process.clone()));
                Ok(())
            }
            Phase::Running => self.ask_to_signal(process, signal, all).await,
            // Output that the guest promised and does not give; with the VM gone it ends.
            Phase::Ending if self.may_take_vm(process) && signal == SIGKILL => {
                self.sandbox.kill();
                Ok(())
            }
            // Engines stop all that a container may have left: nothing is.
            Phase::Ending | Phase::Ended if all => Ok(()),
            Phase::Ending | Phase::Ended => Err(Refusal::not_found("container not running")),
        }
    }

    /// Whether a guest that does not end this process may be ended for it: not while others live in it.
    fn may_take_vm(&self, process: &Process) -> bool {
        process.is_init() && self.role != Role::Member
    }

    pub(super) async fn ask_to_signal(
        &self,
        process: &Process,
        signal: u32,
        all: bool,
    ) -> Result<(), Refusal> {
        let request = agent::SignalProcessRequest {
            process: Some(process.reference()).into(),
            signal,
            all,
            ..Default::default()
        };
        Ok(self.sandbox.agent()?.signal_process(&request).await.map(drop)?)
    }

    /// Takes the VM away from an init that was killed, as its guest says, and yet runs on.
    async fn insist(self: Arc<Self>, process: Arc<Process>) {
        tokio::select! {
            _ = process.wait() => {}
            () = tokio::time::sleep(STUBBORN) => if process.phase() == Phase::Running {
                tracing::warn!("guest says that it killed the container, but it runs on: its VM is killed");
                process.note_killed();
                self.sandbox.kill();
            }
        }
    }

    pub(super) async fn deliver_early_signals(self: &Arc<Self>) {
        let early =
            std::mem::take(&mut *self.early_signals.lock().unwrap_or_else(PoisonError::into_inner));
        for signal in early {
            if let Err(refusal) = self.signal(&self.init, signal, false).await {
                tracing::debug!(message = refusal.message, signal, "deliver an early signal");
            }
        }
    }
}
