//! Signals: to a process that runs, that is only created, or whose guest does not answer.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use kata_engine_api::{handover::FailureKind, record::Cause};
use kata_protocol::agent;
use kata_sandbox::{agent::AgentError, lifecycle::SandboxError, loss::Loss};
use tokio::time::timeout;
use ttrpc::Code;

use super::{Container, Role};
use crate::{
    failure::Refusal,
    process::{Outcome, Phase, Process, SIGKILL, SIGTERM, signal_code},
};

/// The last that there is.
const LAST: u32 = 64;

/// Signals that do not end a process which has installed no handler, as a created container has none: the probe, CHLD,
/// CONT, those that stop, URG, WINCH.
const HARMLESS: [u32; 9] = [0, 17, 18, 19, 20, 21, 22, 23, 28];

/// So long a guest may take to carry out a SIGKILL; then its VM goes, or, of a member, that of the pod which is ended.
const STUBBORN: Duration = Duration::from_secs(5);

/// The same of one member, with whose VM others end too, until the guest answers and until the member has ended. A busy host,
/// or a disk of it that is slow to write back, may hold a guest up that long, and no one is to suffer for that.
const PATIENT: Duration = Duration::from_secs(30);

impl Container {
    /// Sends a signal to a process; to an init's, `all` means all of the container's.
    pub async fn signal(
        self: &Arc<Self>,
        process: &Arc<Process>,
        signal: u32,
        all: bool,
    ) -> Result<(), Refusal> {
        let all = all && process.is_init();
        if signal > LAST && process.phase() < Phase::Ending {
            let message = format!("unable to signal init: invalid argument: {signal}");
            return Err(Refusal::new(FailureKind::InvalidArgument, message));
        }
        match process.phase() {
            // A probe: it is there.
            Phase::Starting | Phase::Running if signal == 0 => Ok(()),
            // Engines take that as the word that it never ran.
            Phase::Created if !process.is_init() => {
                Err(Refusal::precondition("process not created"))
            }
            Phase::Created if HARMLESS.contains(&signal) => Ok(()),
            Phase::Created => {
                let code = signal_code(signal);
                let outcome = Outcome::unstarted(code, Cause::KilledBeforeStart, None);
                self.conclude(process, outcome).await;
                Ok(())
            }
            Phase::Starting
                if signal == SIGKILL && (!process.is_init() || self.role == Role::Member) =>
            {
                let doomed = self.doom(process).await;
                if process.is_init() {
                    tokio::spawn(self.clone().insist(process.clone(), PATIENT));
                }
                doomed
            }
            Phase::Starting if !process.is_init() => {
                Err(Refusal::precondition("process is starting"))
            }
            // A guest that does not come up answers no signal.
            Phase::Starting if signal == SIGKILL => {
                self.sandbox.abort_boot();
                Ok(())
            }
            Phase::Starting => {
                self.early_signals.lock().unwrap_or_else(PoisonError::into_inner).push(signal);
                Ok(())
            }
            Phase::Running if process.is_init() && self.role == Role::Pod => {
                if !HARMLESS.contains(&signal) {
                    let outcome = Outcome::unstarted(signal_code(signal), Cause::Signaled, None);
                    self.conclude(process, outcome).await;
                }
                Ok(())
            }
            Phase::Running if process.is_init() && signal == SIGKILL => {
                self.kill(process, all).await
            }
            Phase::Running => self.ask_to_signal(process, signal, all).await,
            Phase::Ending
                if process.is_init() && self.role != Role::Member && signal == SIGKILL =>
            {
                // Output that the guest promised and does not give; with the VM gone it ends. Before, files are written back,
                // for which the guest has little time.
                if self.settled.load(Ordering::Relaxed) {
                    self.sandbox.kill();
                }
                Ok(())
            }
            // Engines stop all that a container may have left: nothing is.
            Phase::Ending | Phase::Ended if all => Ok(()),
            Phase::Ending | Phase::Ended => Err(Refusal::not_found("container not running")),
        }
    }

    /// Has a process that is being started killed as soon as the guest has it. What it does before its program runs may take as
    /// long as its hooks like.
    async fn doom(&self, process: &Process) -> Result<(), Refusal> {
        process.note_doomed();
        let init = process.is_init();
        // Whoever starts it has looked at the note by then, and does not look again.
        let is_there =
            if init { self.guest_pid().is_some() } else { process.phase() == Phase::Running };
        if is_there { self.ask_to_signal(process, SIGKILL, init).await } else { Ok(()) }
    }

    /// Has the guest kill an init, and does without the guest if it does not.
    async fn kill(self: &Arc<Self>, process: &Arc<Process>, all: bool) -> Result<(), Refusal> {
        let alone = self.role != Role::Member;
        let patience = if alone { STUBBORN } else { PATIENT };
        let answer = match timeout(patience, self.ask_to_signal(process, SIGKILL, all)).await {
            Err(_) => {
                self.give_up(process, "guest does not answer to SIGKILL");
                return Ok(());
            }
            // It has ended by itself, of which the guest is about to tell.
            Ok(Err(refusal)) if refusal.kind == FailureKind::NotFound => Ok(()),
            Ok(Err(refusal)) if alone => {
                self.give_up(
                    process,
                    &format!("guest does not take SIGKILL ({})", refusal.message),
                );
                return Ok(());
            }
            Ok(answer) => answer,
        };
        tokio::spawn(self.clone().insist(process.clone(), patience));
        answer
    }

    /// Takes the VM away from an init that nothing else ends.
    fn give_up(&self, process: &Process, why: &str) {
        let id = &process.container_id;
        tracing::warn!(id, "{why}, so its VM is killed");
        process.note_killed();
        self.sandbox.give_up(Loss::GuestStuck(format!("{why} of container {id}")));
    }

    /// Ends a member of a pod that is being ended. One whose guest does not obey is left to the end of the VM.
    pub async fn end_as_member(self: &Arc<Self>, grace: Duration) {
        let send = |signal| {
            let container = self.clone();
            // On its own, since an end that has begun must not stop half way.
            tokio::spawn(async move {
                let sent = container.signal(&container.init, signal, signal == SIGKILL).await;
                if let Err(refusal) = sent {
                    tracing::debug!(message = refusal.message, signal, "end a member");
                }
            });
        };
        if !end_within(&self.init, grace, send).await {
            let id = &self.init.container_id;
            tracing::warn!(id, "guest does not end the container, which ends with its VM");
        }
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
        let agent = self.sandbox.agent().map_err(unsignalled)?;
        agent.signal_process(&request).await.map(drop).map_err(|error| unsignalled(error.into()))
    }

    /// Takes the VM away from an init that was killed, as its guest says, and yet runs on.
    async fn insist(self: Arc<Self>, process: Arc<Process>, patience: Duration) {
        if timeout(patience, process.wait()).await.is_ok() {
            return;
        }
        // Before it is in the guest there is nothing that could obey.
        let starts = process.phase() == Phase::Starting && self.guest_pid().is_some();
        if starts || process.phase() == Phase::Running {
            self.give_up(&process, "guest does not carry out SIGKILL");
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

/// Why a signal could not be sent. What has ended, alone or with its sandbox, is not there to have one: engines go on then.
fn unsignalled(error: SandboxError) -> Refusal {
    match error {
        SandboxError::NotRunning
        | SandboxError::Lost(_)
        | SandboxError::Agent(AgentError::SandboxLost { .. }) => {
            Refusal::not_found("process already finished: its sandbox has ended")
        }
        SandboxError::Agent(AgentError::Refused { code: Code::NOT_FOUND, message }) => {
            Refusal::not_found(&format!("process already finished: {message}"))
        }
        other => other.into(),
    }
}

/// Has an init end, if it may by itself within `grace`; says whether it has.
async fn end_within(init: &Process, grace: Duration, send: impl Fn(u32)) -> bool {
    for (signal, patience) in [(SIGTERM, grace), (SIGKILL, STUBBORN)] {
        if patience.is_zero() {
            continue;
        }
        send(signal);
        if timeout(patience, init.wait()).await.is_ok() {
            return true;
        }
    }
    init.note_killed();
    false
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, time::Duration};

    use kata_engine_api::{
        handover::FailureKind,
        record::{Cause, Ended},
    };
    use kata_sandbox::{agent::AgentError, lifecycle::SandboxError, loss::Loss};
    use tokio::time::Instant;
    use ttrpc::Code;

    use super::{SIGKILL, SIGTERM, STUBBORN, end_within, unsignalled};
    use crate::container::fake_agent::init;

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_obeys_no_signal_is_not_waited_for_longer() {
        let (init, sent, begun) = (init(), RefCell::new(Vec::new()), Instant::now());
        let grace = Duration::from_secs(10);
        assert!(!end_within(&init, grace, |signal| sent.borrow_mut().push(signal)).await);
        assert_eq!(*sent.borrow(), [SIGTERM, SIGKILL]);
        // tokio's clock ticks in milliseconds.
        let bound = grace + STUBBORN + Duration::from_millis(10);
        assert!(begun.elapsed() <= bound, "{:?}", begun.elapsed());
        let outcome = init.outcome_of_loss(&Loss::Stopped);
        assert_eq!((outcome.end.code, outcome.end.cause), (137, Cause::Signaled));
    }

    #[test]
    fn what_has_ended_is_not_found_and_a_guest_that_hangs_is_there() {
        let gone = AgentError::Refused { code: Code::NOT_FOUND, message: "ended".into() };
        let lost = AgentError::SandboxLost { call: "signal_process", loss: Loss::Stopped };
        for error in [gone.into(), lost.into(), SandboxError::Lost(Loss::Stopped)] {
            assert_eq!(unsignalled(error).kind, FailureKind::NotFound);
        }
        let silent = AgentError::Silent { call: "signal_process", limit: STUBBORN };
        assert_eq!(unsignalled(silent.into()).kind, FailureKind::Internal);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_ends_by_itself_is_not_killed() {
        let (init, sent) = (init(), RefCell::new(Vec::new()));
        let send = |signal| {
            sent.borrow_mut().push(signal);
            init.publish(Ended::new(0, Cause::Exited, None));
        };
        assert!(end_within(&init, Duration::from_secs(10), send).await);
        assert_eq!(*sent.borrow(), [SIGTERM]);
        sent.borrow_mut().clear();
        assert!(end_within(&init, Duration::ZERO, send).await);
        assert_eq!(*sent.borrow(), [SIGKILL]);
    }
}
