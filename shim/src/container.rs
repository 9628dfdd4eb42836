//! A container of the sandbox: its init, its additional processes, and what is recorded of it.
//!
//! Every end takes the same way, [`Container::conclude`], whatever brought the news: the agent, the loss of the
//! sandbox, or the loss of a monitor.

mod added;
#[cfg(test)]
pub mod fake_agent;
mod guest;
mod links;
mod localhost;
mod monitored;
mod obedience;
mod oom;
mod pausing;
mod resolver;
mod resources;
mod signals;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use kata_engine_api::{
    control::End,
    handover::{FailureKind, TerminalSize},
    record::{Cause, Ended, Record, Status},
};
use kata_protocol::{agent, hello::StreamToken};
use kata_sandbox::{
    agent::AgentError,
    cgroup::Group,
    lifecycle::{Common, Sandbox},
    network::Namespace,
    step::Step,
};
use kata_spec::{HostDisk, Limits};
use tokio::sync::{Notify, watch};

use self::{resolver::Resolver, resources::Resources};
use crate::{
    copies::Copy,
    failure::Refusal,
    process::{LOST, Outcome, Phase, Process},
    record,
};

/// So long a guest may take to write back or let go of its caches, when a container is paused and resumed.
const CACHES: Duration = Duration::from_secs(10);

/// An engine that calls us reads on for as long as it wants, and then deletes the process: longer than any process lives.
const UNTIL_DELETED: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a container is to its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its start boots the VM with it, its end ends the VM.
    Alone,
    /// The sandbox itself, as engines have it: its start boots the VM, its end ends it, and nothing of it is in the guest.
    Pod,
    /// One of many: it comes into a guest that runs, and leaves it running.
    Member,
}

/// What a container is made of.
pub struct Parts {
    /// What it is to its sandbox.
    pub role: Role,
    /// Its sandbox; a lone container has one for itself.
    pub sandbox: Arc<Sandbox>,
    /// Its bundle, when there is one.
    pub bundle: Option<OwnedFd>,
    /// Its control group on the host.
    pub group: Group,
    /// What it may use.
    pub limits: Limits,
    /// Block devices of the host that it has as disks.
    pub disks: Vec<HostDisk>,
    /// Where its record is.
    pub directory: Arc<OwnedFd>,
    /// Its init.
    pub init: Arc<Process>,
    /// `config.json` for the guest.
    pub spec: Vec<u8>,
    /// Where the guest finds its root.
    pub guest_root: String,
    /// It is in the pod's own pid namespace.
    pub shares_pids: bool,
    /// What all containers of its sandbox have in common, when it stands for the sandbox.
    pub common: Common,
    /// Volumes that the guest has copies of.
    pub copies: Vec<Arc<Copy>>,
    /// Volumes in the guest's memory.
    pub memory: Vec<agent::MemoryVolume>,
    /// Namespace whose links the guest takes over; none for loopback alone.
    pub network: Option<Namespace>,
    /// The file that is mounted on its `/etc/resolv.conf`.
    pub resolv_conf: Option<OwnedFd>,
    /// Bounded wait for streams that descendants hold open.
    pub grace: Duration,
    /// First record.
    pub record: Record,
}

/// A container.
pub struct Container {
    role: Role,
    sandbox: Arc<Sandbox>,
    directory: Arc<OwnedFd>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    spec: Mutex<Vec<u8>>,
    resources: Resources,
    bundle: Option<OwnedFd>,
    /// How often the guest's OOM killer has struck it.
    oom_kills: watch::Sender<u64>,
    guest_root: String,
    shares_pids: bool,
    /// Of its init; 0 before it is in the guest.
    guest_pid: AtomicU32,
    /// It is in the guest, though it may not run yet; locked while it enters.
    entered: tokio::sync::Mutex<bool>,
    common: Common,
    copies: Vec<Arc<Copy>>,
    memory: Vec<agent::MemoryVolume>,
    network: Mutex<Option<Namespace>>,
    resolver: Resolver,
    grace: Duration,
    record: Mutex<Record>,
    /// Rung when the record's status may have changed.
    changed: Notify,
    /// The record on disk is behind: writing it has failed.
    unwritten: AtomicBool,
    /// Its end has begun, and the guest has had its time to write files back.
    settled: AtomicBool,
    /// Signals that came while the init was starting: it may run before the guest's answer says so.
    early_signals: Mutex<Vec<u32>>,
}

impl Container {
    /// Records a container and listens to its monitor.
    pub fn create(parts: Parts) -> Result<Arc<Self>, Refusal> {
        let container = Arc::new(Self {
            role: parts.role,
            sandbox: parts.sandbox,
            directory: parts.directory,
            init: parts.init,
            execs: Mutex::default(),
            spec: Mutex::new(parts.spec),
            resources: Resources::new(parts.group, parts.limits, parts.disks),
            bundle: parts.bundle,
            oom_kills: watch::Sender::new(0),
            guest_root: parts.guest_root,
            shares_pids: parts.shares_pids,
            guest_pid: AtomicU32::new(0),
            entered: tokio::sync::Mutex::new(false),
            common: parts.common,
            copies: parts.copies,
            memory: parts.memory,
            network: Mutex::new(parts.network),
            resolver: Resolver::new(parts.resolv_conf),
            grace: parts.grace,
            record: Mutex::new(parts.record),
            changed: Notify::new(),
            unwritten: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            early_signals: Mutex::default(),
        });
        container.write(&container.record())?;
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

    /// Its own process.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Pid of its init in the guest, once it is there.
    pub fn guest_pid(&self) -> Option<u32> {
        Some(self.guest_pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Where its record is.
    pub fn directory(&self) -> &Arc<OwnedFd> {
        &self.directory
    }

    /// What it is to its sandbox.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// The record as it stands.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the guest run it, whatever that takes.
    pub async fn start(self: &Arc<Self>) -> Result<(), Refusal> {
        if !self.init.advance(&[Phase::Created], Phase::Starting) {
            return Err(Refusal::precondition(match self.record().status {
                Status::Running => "cannot start an already running container".to_owned(),
                Status::Stopped => "cannot start a container that has stopped".to_owned(),
                status => format!("cannot start a container in the {} state", status.name()),
            }));
        }
        match self.bring_up().await {
            Ok(()) => {
                if !self.init.advance(&[Phase::Starting], Phase::Running) {
                    self.end_in_guest().await;
                    return Err(Refusal::precondition("container ended while it was started"));
                }
                // Before anything can fail: whatever happens from here on, its end is seen.
                tokio::spawn(self.clone().supervise(self.init.clone()));
                if self.role != Role::Pod {
                    tokio::spawn(self.clone().watch_oom());
                }
                self.record_facts(|record| record.status = Status::Running);
                tokio::spawn(self.clone().note_sandbox());
                self.deliver_early_signals().await;
                self.catch_up_with_size(&self.init).await;
                Ok(())
            }
            Err(refusal) => {
                let (code, cause) = match refusal.kind {
                    // It was wanted so.
                    _ if self.sandbox.was_aborted() || self.init.is_doomed() => {
                        (LOST, Cause::KilledBeforeStart)
                    }
                    FailureKind::CommandNotFound => (127, Cause::Exited),
                    FailureKind::CommandNotExecutable => (126, Cause::Exited),
                    _ => (LOST, self.why_unstarted()),
                };
                let outcome = Outcome::unstarted(code, cause, Some(refusal.message.clone()));
                self.conclude(&self.init, outcome).await;
                // What came between is why the start failed, and not what became of the VM then.
                match self.init.wait().await.cause {
                    ended if ended == cause => Err(refusal),
                    ended => Err(Refusal::precondition(format!(
                        "the container ended while it was started: {}",
                        ended.describe()
                    ))),
                }
            }
        }
    }

    /// Sets a terminal's size; kept when the process does not run yet.
    pub async fn resize(&self, process: &Process, size: TerminalSize) -> Result<(), Refusal> {
        process.set_size(size);
        match process.phase() {
            // No process has it, or none that has a terminal.
            Phase::Running if self.role == Role::Pod || !process.terminal => Ok(()),
            Phase::Running => self.ask_to_resize(process, size).await,
            _ => Ok(()),
        }
    }

    /// Passes on the size that a terminal was given while its process was started.
    async fn catch_up_with_size(&self, process: &Process) {
        if let Some(size) = process.changed_size()
            && let Err(refusal) = self.ask_to_resize(process, size).await
        {
            tracing::debug!(message = refusal.message, "resize a terminal that has just come");
        }
    }

    async fn ask_to_resize(&self, process: &Process, size: TerminalSize) -> Result<(), Refusal> {
        let request = agent::ResizeTerminalRequest {
            process: Some(process.reference()).into(),
            rows: size.rows.into(),
            columns: size.columns.into(),
            ..Default::default()
        };
        Ok(self.sandbox.agent()?.resize_terminal(&request).await.map(drop)?)
    }

    /// Refuses what needs something in the guest.
    fn must_be_in_guest(&self) -> Result<(), Refusal> {
        match self.role {
            Role::Pod => Err(Refusal::precondition(
                "the container stands for its pod, and no program runs in it",
            )),
            Role::Alone | Role::Member => Ok(()),
        }
    }

    /// Waits until the process has ended, one way or the other.
    async fn supervise(self: Arc<Self>, process: Arc<Process>) {
        let outcome = match self.sandbox.agent() {
            // Nothing of it is in the guest, whose end is its own.
            Ok(_) if self.role == Role::Pod && process.is_init() => {
                process.outcome_of_loss(&self.sandbox.lost().await)
            }
            Ok(agent) => match agent.wait_process(&process.reference()).await {
                Ok(end) => {
                    process.note_in_guest(false);
                    Outcome::of_agent(&end)
                }
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

    /// The one way to an end; the first caller goes it, for the others nothing is left to do.
    async fn conclude(&self, process: &Arc<Process>, outcome: Outcome) {
        let before = [Phase::Created, Phase::Starting, Phase::Running];
        if !process.advance(&before, Phase::Ending) {
            return;
        }
        let outcome = process.known_better(outcome);
        // A guest that does not obey writes nothing back either.
        if process.is_init() && self.end_in_guest().await {
            // Engines ask what it has used after its end, too. It is asked for first: the agent does one thing at a time.
            let last = async {
                if let Err(refusal) = self.ask_for_statistics().await {
                    tracing::debug!(message = refusal.message, "last statistics");
                }
            };
            // Files written by the container are on the host before anybody hears of its end.
            tokio::join!(last, self.settle_guest());
        }
        if process.is_init() {
            self.settled.store(true, Ordering::Relaxed);
        }
        let grace = if process.monitor.is_ours() { UNTIL_DELETED } else { self.grace };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        process.drain(End { grace_ms, ..outcome.end.clone() }).await;
        let mut ended = outcome.recorded();
        if process.is_init() {
            self.explain(&mut ended);
            if ended.cause.is_out_of_memory() {
                self.mark_bundle();
            }
            let (code, cause) = (ended.code, ended.cause.describe());
            tracing::info!(
                code,
                cause,
                detail = ended.detail,
                step = ended.step,
                "container ended"
            );
            self.update_record(|record| {
                record.status = Status::Stopped;
                record.pid = 0;
                record.ended = Some(ended.clone());
            });
        }
        process.advance(&[Phase::Ending], Phase::Ended);
        process.publish(ended);
        tokio::spawn(process.clone().dismiss());
        if process.is_init() && self.role != Role::Member {
            self.sandbox.stop().await;
        }
    }

    /// Records what has become known of the sandbox, and something else.
    fn record_facts(&self, change: impl FnOnce(&mut Record)) {
        let facts = self.sandbox.facts();
        self.update_record(|record| {
            record.vmm_pid = facts.vmm_pid;
            record.proxy_pid = facts.proxy_pid;
            record.sandbox.extend(facts.notes);
            change(record);
        });
    }

    /// Adds what is known beyond the cause: how far a start got, and what the guest's kernel last said.
    fn explain(&self, ended: &mut Ended) {
        if matches!(ended.cause, Cause::BootFailed | Cause::StartFailed) {
            ended.step = self.sandbox.failed_at().map(|step| step.to_string());
        }
        if ended.cause.is_of_the_sandbox() {
            ended.console = self.sandbox.last_words();
        }
    }

    /// Changes the record. What it says is done already, so one that can't be written now is caught up with later.
    fn update_record(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer of the guest that comes after its end changes nothing.
        if record.status == Status::Stopped {
            return;
        }
        change(&mut record);
        self.changed.notify_waiters();
        if let Err(refusal) = self.write(&record) {
            tracing::error!(message = refusal.message, "the record is behind");
        }
    }

    /// Tries anew to write a record that could not be written. Whoever is about to read it calls this.
    pub fn catch_up(&self) {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if self.unwritten.load(Ordering::Relaxed)
            && let Err(refusal) = self.write(&record)
        {
            tracing::warn!(message = refusal.message, "the record is still behind");
        }
    }

    fn write(&self, record: &Record) -> Result<(), Refusal> {
        self.unwritten.store(true, Ordering::Relaxed);
        self.sandbox.steps().enter(Step::WriteRecord).map_err(|e| Refusal::internal(&e))?;
        record::write(&self.directory, record).map_err(|e| Refusal::internal(&e))?;
        self.unwritten.store(false, Ordering::Relaxed);
        Ok(())
    }
}

fn new_token() -> Result<StreamToken, Refusal> {
    kata_sandbox::random::bytes().map_err(|e| Refusal::internal(&e))
}
