//! A container of the sandbox: its init, its additional processes, and what is recorded of it.
//!
//! Every end takes the same way, [`Container::conclude`], whatever brought the news: the agent, the loss of the
//! sandbox, or the loss of a monitor.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kata_engine_api::{
    control::{End, ToShim},
    handover::{FailureKind, TerminalSize},
    record::{Cause, Record, Status},
};
use kata_protocol::{agent, hello::StreamToken};
use kata_sandbox::{
    agent::AgentError,
    lifecycle::{Boot, Sandbox},
    network::Namespace,
    step::Step,
};

use tokio::{sync::mpsc, time::timeout};

use crate::{
    failure::Refusal,
    monitor::Monitor,
    process::{LOST, Outcome, Phase, Process, signal_code},
    record,
};

const SIGKILL: u32 = 9;

/// Signals that do not end a process which has installed no handler, as a created container has none: the probe, CHLD,
/// CONT, those that stop, URG, WINCH.
const HARMLESS: [u32; 9] = [0, 17, 18, 19, 20, 21, 22, 23, 28];

/// So long a guest may take to carry out a SIGKILL; then its VM goes.
const STUBBORN: Duration = Duration::from_secs(5);

/// What a monitor may say ahead of the guest: more signals than that merge anyway.
const WORDS: usize = 64;

/// What a container is made of.
pub struct Parts {
    /// Its sandbox; a lone container has one for itself.
    pub sandbox: Arc<Sandbox>,
    /// Sandbox directory.
    pub directory: Arc<OwnedFd>,
    /// Its init.
    pub init: Arc<Process>,
    /// `config.json` for the guest.
    pub spec: Vec<u8>,
    /// Where the guest finds its root.
    pub guest_root: String,
    /// Namespace whose links the guest takes over; none for loopback alone.
    pub network: Option<Namespace>,
    /// Bounded wait for streams that descendants hold open.
    pub grace: Duration,
    /// First record.
    pub record: Record,
}

/// A container.
pub struct Container {
    sandbox: Arc<Sandbox>,
    directory: Arc<OwnedFd>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    spec: Vec<u8>,
    guest_root: String,
    network: Mutex<Option<Namespace>>,
    grace: Duration,
    record: Mutex<Record>,
    /// Signals that came while the init was starting: it may run before the guest's answer says so.
    early_signals: Mutex<Vec<u32>>,
}

impl Container {
    /// Records a container and listens to its monitor.
    pub fn create(parts: Parts) -> Result<Arc<Self>, Refusal> {
        let container = Arc::new(Self {
            sandbox: parts.sandbox,
            directory: parts.directory,
            init: parts.init,
            execs: Mutex::default(),
            spec: parts.spec,
            guest_root: parts.guest_root,
            network: Mutex::new(parts.network),
            grace: parts.grace,
            record: Mutex::new(parts.record),
            early_signals: Mutex::default(),
        });
        container.update_record(|record| record.status = Status::Created)?;
        tokio::spawn(container.clone().listen(container.init.clone()));
        Ok(container)
    }

    /// The init, or an additional process.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Refusal> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(exec_id).cloned().ok_or_else(|| Refusal::not_found("no such process"))
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// The record as it stands.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Boots the VM and starts the container in it, in one round trip.
    pub async fn start(self: &Arc<Self>) -> Result<u32, Refusal> {
        if !self.init.advance(&[Phase::Created], Phase::Starting) {
            let status = self.record().status;
            return Err(Refusal::precondition(format!(
                "cannot start a container in the {} state",
                status_name(status)
            )));
        }
        match self.boot().await {
            Ok(guest_pid) => {
                if !self.init.advance(&[Phase::Starting], Phase::Running) {
                    return Err(Refusal::precondition("container ended while it was started"));
                }
                // Before anything can fail: whatever happens from here on, its end is seen.
                tokio::spawn(self.clone().supervise(self.init.clone()));
                let facts = self.sandbox.facts();
                self.update_record(|record| {
                    record.status = Status::Running;
                    record.vmm_pid = facts.vmm_pid;
                    record.proxy_pid = facts.proxy_pid;
                    record.sandbox.extend(facts.notes);
                })?;
                self.deliver_early_signals().await;
                Ok(guest_pid)
            }
            Err(refusal) => {
                let (code, cause) = match refusal.kind {
                    FailureKind::CommandNotFound => (127, Cause::Exited),
                    FailureKind::CommandNotExecutable => (126, Cause::Exited),
                    _ => (LOST, Cause::BootFailed),
                };
                let outcome = Outcome::unstarted(code, cause, Some(refusal.message.clone()));
                self.conclude(&self.init, outcome).await;
                Err(refusal)
            }
        }
    }

    async fn boot(self: &Arc<Self>) -> Result<u32, Refusal> {
        let token = new_token()?;
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stdio = self.init.expect_streams(self.sandbox.switchboard(), token);
        let first = agent::CreateContainerRequest {
            container_id: self.init.container_id.clone(),
            spec: self.spec.clone(),
            root: self.guest_root.clone(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let boot = Boot { network, first };
        let booted = self.sandbox.boot(boot).await;
        if booted.is_err() {
            self.sandbox.switchboard().forget(token);
        }
        Ok(booted?)
    }

    /// Makes and runs an additional process.
    pub async fn exec(
        self: &Arc<Self>,
        exec_id: &str,
        monitor: Monitor,
        process: Vec<u8>,
        terminal: Option<Option<TerminalSize>>,
    ) -> Result<(), Refusal> {
        if self.init.phase() != Phase::Running || self.record().status != Status::Running {
            let status = status_name(self.record().status);
            return Err(Refusal::precondition(format!("cannot exec in a {status} container")));
        }
        let (agent, token) = (self.sandbox.agent()?, new_token()?);
        let exec = Arc::new(Process::new(&self.init.container_id, exec_id, monitor, terminal));
        {
            let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            if execs.contains_key(exec_id) {
                return Err(Refusal::new(
                    FailureKind::AlreadyExists,
                    "a process with this id exists",
                ));
            }
            execs.insert(exec_id.into(), exec.clone());
        }
        exec.advance(&[Phase::Created], Phase::Starting);
        let request = agent::ExecProcessRequest {
            container_id: self.init.container_id.clone(),
            exec_id: exec_id.into(),
            process,
            stdio: Some(exec.expect_streams(self.sandbox.switchboard(), token)).into(),
            ..Default::default()
        };
        let made = agent.exec_process(&request).await;
        if let Err(error) = made {
            self.sandbox.switchboard().forget(token);
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
            return Err(error.into());
        }
        exec.advance(&[Phase::Starting], Phase::Running);
        tokio::spawn(self.clone().listen(exec.clone()));
        tokio::spawn(self.clone().supervise(exec));
        Ok(())
    }

    /// Sends a signal to a process, or to all of the container's.
    pub async fn signal(
        self: &Arc<Self>,
        process: &Arc<Process>,
        signal: u32,
        all: bool,
    ) -> Result<(), Refusal> {
        match process.phase() {
            Phase::Created if HARMLESS.contains(&signal) => Ok(()),
            Phase::Created => {
                let code = signal_code(signal);
                let outcome = Outcome::unstarted(code, Cause::KilledBeforeStart, None);
                self.conclude(process, outcome).await;
                Ok(())
            }
            // A guest that does not come up answers no signal.
            Phase::Starting if signal == SIGKILL => {
                self.sandbox.abort_boot();
                Ok(())
            }
            Phase::Starting if process.is_init() => {
                self.early_signals.lock().unwrap_or_else(PoisonError::into_inner).push(signal);
                Ok(())
            }
            Phase::Starting => Err(Refusal::precondition("process is starting")),
            Phase::Running if process.is_init() && signal == SIGKILL => {
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
            Phase::Ending if process.is_init() && signal == SIGKILL => {
                self.sandbox.kill();
                Ok(())
            }
            Phase::Ending | Phase::Ended => Err(Refusal::not_found("container not running")),
        }
    }

    async fn ask_to_signal(
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

    async fn deliver_early_signals(self: &Arc<Self>) {
        let early =
            std::mem::take(&mut *self.early_signals.lock().unwrap_or_else(PoisonError::into_inner));
        for signal in early {
            if let Err(refusal) = self.signal(&self.init, signal, false).await {
                tracing::debug!(message = refusal.message, signal, "deliver an early signal");
            }
        }
    }

    /// Sets a terminal's size; kept when the process does not run yet.
    pub async fn resize(&self, process: &Process, size: TerminalSize) -> Result<(), Refusal> {
        process.set_size(size);
        if process.phase() != Phase::Running {
            return Ok(());
        }
        let request = agent::ResizeTerminalRequest {
            process: Some(process.reference()).into(),
            rows: size.rows.into(),
            columns: size.columns.into(),
            ..Default::default()
        };
        Ok(self.sandbox.agent()?.resize_terminal(&request).await.map(drop)?)
    }

    /// Freezes or thaws every process of the container.
    pub async fn set_paused(&self, paused: bool) -> Result<(), Refusal> {
        let (from, to) = if paused {
            (Status::Running, Status::Paused)
        } else {
            (Status::Paused, Status::Running)
        };
        if self.record().status != from {
            let status = status_name(self.record().status);
            return Err(Refusal::precondition(format!("container is {status}")));
        }
        let container = agent::ContainerRef {
            container_id: self.init.container_id.clone(),
            ..Default::default()
        };
        let agent = self.sandbox.agent()?;
        if paused {
            agent.pause_container(&container).await?;
        } else {
            agent.resume_container(&container).await?;
        }
        self.update_record(|record| record.status = to)
    }

    /// Processes of the container, as the guest numbers them.
    pub async fn guest_pids(&self) -> Result<Vec<u32>, Refusal> {
        let container = agent::ContainerRef {
            container_id: self.init.container_id.clone(),
            ..Default::default()
        };
        Ok(self.sandbox.agent()?.list_processes(&container).await?.guest_pids)
    }

    /// Waits until the process has ended, one way or the other.
    async fn supervise(self: Arc<Self>, process: Arc<Process>) {
        let outcome = match self.sandbox.agent() {
            Ok(agent) => match agent.wait_process(&process.reference()).await {
                Ok(end) => Outcome::of_agent(&end),
                Err(error) => {
                    tracing::debug!(%error, "wait for the process");
                    match error {
                        // The agent lives, and knows nothing of this process: nobody can say how it ended.
                        AgentError::Refused { .. } if !process.is_init() => {
                            Outcome::unstarted(LOST, Cause::Unknown, Some(error.to_string()))
                        }
                        _ => process.outcome_of_loss(&self.sandbox.agent_lost().await),
                    }
                }
            },
            Err(_) => process.outcome_of_loss(&self.sandbox.agent_lost().await),
        };
        self.conclude(&process, outcome).await;
    }

    /// Hears a process's monitor until it is gone. It never waits for anything else: what the monitor asks of the guest is
    /// done by [`Container::obey`], so that a guest that hangs can't hide that the output is drained or the monitor dead.
    async fn listen(self: Arc<Self>, process: Arc<Process>) {
        let (words, waiting) = mpsc::channel(WORDS);
        tokio::spawn(self.clone().obey(process.clone(), waiting));
        while let Some(word) = process.next_word().await {
            match word {
                ToShim::Drained {} => process.note_drained(),
                word => {
                    if words.try_send(word).is_err() {
                        tracing::warn!("the guest is far behind its monitor: a signal is dropped");
                    }
                }
            }
        }
        drop(words);
        process.note_drained();
        self.miss(&process).await;
    }

    /// Does what a monitor asks for, in its order.
    async fn obey(self: Arc<Self>, process: Arc<Process>, mut words: mpsc::Receiver<ToShim>) {
        while let Some(word) = words.recv().await {
            let done = match word {
                ToShim::Signal(signal) => self.signal(&process, signal.unsigned_abs(), false).await,
                ToShim::Resize(size) => self.resize(&process, size).await,
                ToShim::Drained {} => Ok(()),
            };
            if let Err(refusal) = done {
                tracing::debug!(message = refusal.message, "word of the monitor");
            }
        }
    }

    /// The monitor is gone: whom it stood for goes too.
    async fn miss(self: &Arc<Self>, process: &Arc<Process>) {
        match process.phase() {
            Phase::Ending | Phase::Ended => {}
            phase if process.is_init() => {
                tracing::warn!("monitor is gone, so its container is killed");
                if phase == Phase::Starting {
                    self.sandbox.abort_boot();
                }
                let mut outcome = Outcome::unstarted(LOST, Cause::MonitorKilled, None);
                outcome.detail = Some("the monitor was killed".into());
                outcome.end.stdout_bytes = None;
                self.conclude(process, outcome).await;
            }
            _ => {
                if let Err(refusal) = self.signal(process, SIGKILL, false).await {
                    tracing::debug!(message = refusal.message, "kill a process without monitor");
                }
            }
        }
    }

    /// The one way to an end; the first caller goes it, for the others nothing is left to do.
    async fn conclude(&self, process: &Process, outcome: Outcome) {
        let before = [Phase::Created, Phase::Starting, Phase::Running];
        if !process.advance(&before, Phase::Ending) {
            return;
        }
        if process.is_init() {
            // Files written by the container are on the host before anybody hears of its end.
            self.sandbox.quiesce().await;
        }
        let grace_ms = u64::try_from(self.grace.as_millis()).ok();
        process.drain(End { grace_ms, ..outcome.end.clone() }).await;
        let ended = outcome.recorded();
        if process.is_init() {
            tracing::info!(code = ended.code, cause = ended.cause.describe(), "container ended");
            let recorded = self.update_record(|record| {
                record.status = Status::Stopped;
                record.pid = 0;
                record.ended = Some(ended.clone());
            });
            if let Err(refusal) = recorded {
                tracing::error!(message = refusal.message, "record the end");
            }
        }
        process.advance(&[Phase::Ending], Phase::Ended);
        process.publish(ended);
        process.monitor.dismiss();
        if process.is_init() {
            self.sandbox.stop().await;
        } else {
            self.forget(process).await;
        }
    }

    /// Of an ended additional process nothing is kept but its end, for those who wait.
    async fn forget(&self, process: &Process) {
        if let Ok(agent) = self.sandbox.agent()
            && let Err(error) = agent.delete_process(&process.reference()).await
        {
            tracing::debug!(%error, "delete an ended process");
        }
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&process.exec_id);
    }

    fn update_record(&self, change: impl FnOnce(&mut Record)) -> Result<(), Refusal> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer of the guest that comes after its end changes nothing.
        if record.status == Status::Stopped {
            return Ok(());
        }
        change(&mut record);
        self.sandbox.steps().enter(Step::WriteRecord).map_err(|e| Refusal::internal(&e))?;
        record::write(&self.directory, &record).map_err(|e| Refusal::internal(&e))
    }
}

/// OCI's word for a status.
pub fn status_name(status: Status) -> &'static str {
    match status {
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
    }
}

fn new_token() -> Result<StreamToken, Refusal> {
    kata_sandbox::random::bytes().map_err(|e| Refusal::internal(&e))
}
