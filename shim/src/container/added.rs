//! Processes that are added to a running container.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use kata_engine_api::{
    handover::{FailureKind, TerminalSize},
    record::{Cause, Status},
};
use kata_protocol::agent;
use kata_sandbox::agent::AgentError;
use tokio::time::{Instant, timeout_at};

use super::{Container, new_token};
use crate::{
    engine::stdio::Names,
    failure::Refusal,
    monitor::Monitor,
    process::{LOST, Outcome, Phase, Process, SIGKILL},
};

/// What ends with its container is heard of within milliseconds; more is the reader's.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Container {
    /// Makes an additional process, of which nothing runs yet. `spec` is its OCI process object.
    pub async fn add(
        self: &Arc<Self>,
        exec_id: &str,
        monitor: Monitor,
        (spec, names): (Vec<u8>, Names),
        terminal: Option<Option<TerminalSize>>,
    ) -> Result<Arc<Process>, Refusal> {
        self.must_take_exec().await?;
        let process = Process::new(&self.init.container_id, exec_id, monitor, terminal);
        let process = Arc::new(process.of(spec).named(names));
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(exec_id) {
            let message = "a process with this id exists";
            return Err(Refusal::new(FailureKind::AlreadyExists, message));
        }
        execs.insert(exec_id.into(), process.clone());
        drop(execs);
        tokio::spawn(self.clone().listen(process.clone()));
        Ok(process)
    }

    /// All additional processes.
    pub fn added(&self) -> Vec<Arc<Process>> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.values().cloned().collect()
    }

    /// Has the guest run an additional process.
    pub async fn start_added(self: &Arc<Self>, process: &Arc<Process>) -> Result<(), Refusal> {
        self.must_take_exec().await?;
        if !process.advance(&[Phase::Created], Phase::Starting) {
            return Err(Refusal::precondition("the process was started already, or has ended"));
        }
        let started = async {
            if self.init.phase() == Phase::Created {
                self.enter_early().await?;
            }
            self.ask_to_exec(process).await
        };
        let started = started.await;
        if let Err(refusal) = &started {
            let code = match refusal.kind {
                FailureKind::CommandNotFound => 127,
                FailureKind::CommandNotExecutable => 126,
                _ => LOST,
            };
            let outcome = Outcome::unstarted(code, Cause::Exited, Some(refusal.message.clone()));
            self.conclude(process, outcome).await;
            return started;
        }
        process.advance(&[Phase::Starting], Phase::Running);
        tokio::spawn(self.clone().supervise(process.clone()));
        if process.is_doomed()
            && let Err(refusal) = self.ask_to_signal(process, SIGKILL, false).await
        {
            tracing::debug!(message = refusal.message, "kill a process that was killed early");
        }
        self.catch_up_with_size(process).await;
        Ok(())
    }

    async fn ask_to_exec(&self, process: &Arc<Process>) -> Result<(), Refusal> {
        let (agent, token) = (self.sandbox.agent()?, new_token()?);
        let request = agent::ExecProcessRequest {
            container_id: self.init.container_id.clone(),
            exec_id: process.exec_id.clone(),
            process: process.spec.clone(),
            stdio: Some(process.expect_streams(self.sandbox.switchboard(), token)).into(),
            ..Default::default()
        };
        process.note_in_guest(true);
        let made = agent.exec_process(&request).await;
        if let Err(error) = &made {
            self.sandbox.switchboard().forget(token);
            // What the guest refuses is not there; its id may be used again at once.
            process.note_in_guest(!matches!(error, AgentError::Refused { .. }));
        }
        made?;
        Ok(())
    }

    /// Waits while it is being started, which has an end.
    pub async fn is_started_or_not(&self) {
        loop {
            let changed = self.changed.notified();
            match (self.record().status, self.init.phase()) {
                (Status::Created, phase) if phase > Phase::Created => changed.await,
                _ => return,
            }
        }
    }

    /// Whether a process may be added now; the words are runc's.
    async fn must_take_exec(&self) -> Result<(), Refusal> {
        self.must_be_in_guest()?;
        self.is_started_or_not().await;
        let status = match (self.record().status, self.init.phase()) {
            (Status::Running, Phase::Running) => return Ok(()),
            // It is in no guest yet, and comes into one for that.
            (Status::Created, Phase::Created) => return Ok(()),
            // It has ended, and its output is being passed on.
            (Status::Running, _) => Status::Stopped,
            (status, _) => status,
        };
        Err(Refusal::precondition(match status {
            Status::Paused => {
                "cannot exec in a paused container (use --ignore-paused to override)".to_owned()
            }
            status => format!("cannot exec in a {} container", status.name()),
        }))
    }

    /// Waits a moment for processes that ended with the container: their monitors are to hear how, before the shim goes.
    pub async fn hear_the_last(&self) {
        let until = Instant::now() + LAST_WORDS;
        for process in self.added() {
            if process.phase() > Phase::Created && timeout_at(until, process.wait()).await.is_err()
            {
                // Its monitor knows, and passes on what a slow reader has not read yet.
                tracing::debug!(exec_id = process.exec_id, "output is still being passed on");
            }
        }
    }

    /// Has the guest end and forget a process for whose start or end nobody waits any more. A guest that hangs does so when it goes
    /// on; nobody waits for that.
    async fn disown(self: Arc<Self>, process: Arc<Process>) {
        let Ok(agent) = self.sandbox.agent() else { return };
        let reference = process.reference();
        agent.once_heard().await;
        match agent.delete_process(&reference).await {
            Ok(_) | Err(AgentError::Refused { code: ttrpc::Code::NOT_FOUND, .. }) => return,
            Err(_) => {}
        }
        // It runs, or the guest hangs longer than a call lasts: then these wait there for it.
        let kill = agent::SignalProcessRequest {
            process: Some(reference.clone()).into(),
            signal: SIGKILL,
            ..Default::default()
        };
        let (_, forgotten) =
            tokio::join!(agent.signal_process(&kill), agent.wait_process(&reference));
        if let Err(error) = forgotten {
            tracing::debug!(%error, "wait for a process that was given up");
        }
    }

    /// Ends a process that was never started.
    pub async fn cancel(&self, process: &Arc<Process>) {
        if process.phase() == Phase::Created {
            let outcome = Outcome::unstarted(LOST, Cause::KilledBeforeStart, None);
            self.conclude(process, outcome).await;
        }
    }

    /// Forgets all additional processes of a container that is deleted, and lets none of their monitors outlive it.
    pub async fn forget_all(self: &Arc<Self>) {
        let all = self.added();
        join_all(all.iter().map(|process| async {
            self.cancel(process).await;
            if process.monitor.is_ours() {
                process.kill_monitor().await;
            }
            self.part_with(process);
        }))
        .await;
    }

    /// Forgets an additional process that has ended, or that never started.
    pub async fn forget(self: &Arc<Self>, process: &Arc<Process>) {
        self.cancel(process).await;
        self.part_with(process);
    }

    fn part_with(self: &Arc<Self>, process: &Arc<Process>) {
        if process.is_in_guest() {
            tokio::spawn(self.clone().disown(process.clone()));
        }
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&process.exec_id);
    }
}
