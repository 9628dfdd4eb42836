//! One process of a container, from its monitor's arrival to its recorded end.
//!
//! ```text
//! created ── start ─► running ── agent or loss says how it ended ─► ending ── drained ─► ended
//!    └─────────────── killed before its start ───────────────────────┘
//! ```
//!
//! *Ending* lasts until the monitor has passed on all output (or is gone). Only then is the end recorded and given to
//! those who wait, so whoever sees the record finds the output whole. When the control connection closes, the monitor exits
//! with the code: below the command line last of all, so that whoever sees that finds the record true; below an engine, which
//! waits for the shim and not for the monitor, first, so that whoever hears of the end finds no process any more.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kata_engine_api::{
    control::{End, Stream, ToShim},
    handover::TerminalSize,
    record::{Cause, Ended},
};
use kata_protocol::{
    agent,
    hello::{StreamKind, StreamToken},
};
use kata_sandbox::{guest::Switchboard, loss::Loss};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{engine::stdio::Names, monitor::Monitor};

/// The signal that nothing survives.
pub const SIGKILL: u32 = 9;

/// The signal that asks for the end.
pub const SIGTERM: u32 = 15;

/// Exit code of a process whose sandbox was lost.
pub const LOST: u8 = 137;

/// The agent dials the streams before the process runs, but on other connections than the one that tells its end.
const HANDOVER: Duration = Duration::from_secs(10);

/// What runc's shim gives readers before it takes the end of a process for told.
pub const LATE_OUTPUT: Duration = Duration::from_secs(2);

/// For a monitor to exit that has nothing left to do; some milliseconds are usual.
pub const LAST_STEPS: Duration = Duration::from_secs(1);

/// Where a process is in its life; later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing of it runs.
    Created,
    /// The guest is being asked to run it.
    Starting,
    /// It runs.
    Running,
    /// It has ended; its output is being passed on.
    Ending,
    /// All is said.
    Ended,
}

/// How a process ended, before its output is drained.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// For the monitor; the grace is set when it is told.
    pub end: End,
    /// For people.
    pub detail: Option<String>,
}

/// One process: a container's init, or an exec.
#[derive(Debug)]
pub struct Process {
    /// Container's id.
    pub container_id: String,
    /// Empty for the init.
    pub exec_id: String,
    /// It has a terminal.
    pub terminal: bool,
    /// OCI process object of an additional process.
    pub spec: Vec<u8>,
    /// Its stdio, as the engine named it.
    pub names: Names,
    /// The process that stands for it on the host.
    pub monitor: Monitor,
    /// Held by whoever tells an engine what has become of it, so that it hears of things in their order.
    pub telling: tokio::sync::Mutex<()>,
    /// An engine knows that it was started, and not yet that it has ended.
    exit_owed: watch::Sender<bool>,
    phase: Mutex<Phase>,
    size: Mutex<Option<TerminalSize>>,
    /// The size that the guest was asked to make it with.
    first_size: Mutex<Option<TerminalSize>>,
    drained: Notify,
    handover: Mutex<Option<JoinHandle<()>>>,
    /// The guest may have it on its books.
    in_guest: AtomicBool,
    killed: AtomicBool,
    doomed: AtomicBool,
    deleted: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
}

impl Process {
    pub fn new(
        container_id: &str,
        exec_id: &str,
        monitor: Monitor,
        terminal: Option<Option<TerminalSize>>,
    ) -> Self {
        Self {
            container_id: container_id.into(),
            exec_id: exec_id.into(),
            terminal: terminal.is_some(),
            spec: Vec::new(),
            names: Names::default(),
            monitor,
            telling: tokio::sync::Mutex::default(),
            exit_owed: watch::Sender::new(false),
            phase: Mutex::new(Phase::Created),
            size: Mutex::new(terminal.flatten()),
            first_size: Mutex::default(),
            drained: Notify::new(),
            handover: Mutex::default(),
            in_guest: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            ended: watch::Sender::new(None),
        }
    }

    /// The additional process that `spec` describes.
    pub fn of(self, spec: Vec<u8>) -> Self {
        Self { spec, ..self }
    }

    /// With the stdio of these names.
    pub fn named(self, names: Names) -> Self {
        Self { names, ..self }
    }

    pub fn is_init(&self) -> bool {
        self.exec_id.is_empty()
    }

    pub fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves on, if the process is in one of `from`; says whether it was.
    pub fn advance(&self, from: &[Phase], to: Phase) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = from.contains(&phase);
        if allowed {
            *phase = to;
        }
        allowed
    }

    /// How the agent is to know it.
    pub fn reference(&self) -> agent::ProcessRef {
        agent::ProcessRef {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..Default::default()
        }
    }

    /// How the agent is to know its container.
    pub fn container_reference(&self) -> agent::ContainerRef {
        agent::ContainerRef { container_id: self.container_id.clone(), ..Default::default() }
    }

    pub fn size(&self) -> Option<TerminalSize> {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_size(&self, size: TerminalSize) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }

    /// The size, if it has changed since the guest was asked to make the process.
    pub fn changed_size(&self) -> Option<TerminalSize> {
        let first = *self.first_size.lock().unwrap_or_else(PoisonError::into_inner);
        self.size().filter(|size| self.terminal && Some(*size) != first)
    }

    /// The end, once it is recorded.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Ended {
        let mut news = self.ended.subscribe();
        loop {
            if let Some(ended) = news.borrow_and_update().clone() {
                return ended;
            }
            // The sender is its own: there is more to come.
            news.changed().await.ok();
        }
    }

    /// The last step: those who wait get the end.
    pub fn publish(&self, ended: Ended) {
        self.ended.send_replace(Some(ended));
    }

    /// Its start was told, and its end will be; or that is told too.
    pub fn note_exit_owed(&self, owed: bool) {
        self.exit_owed.send_replace(owed);
    }

    /// Waits until nothing more is told of it, if it was started.
    pub async fn exit_told(&self) {
        // Its start is told by whoever holds this.
        drop(self.telling.lock().await);
        // The sender is its own.
        self.exit_owed.subscribe().wait_for(|owed| !owed).await.ok();
    }

    /// The monitor has passed on all output, or is gone.
    pub fn note_drained(&self) {
        self.drained.notify_one();
    }

    /// The guest is asked to make it, or has said the last of it.
    pub fn note_in_guest(&self, in_guest: bool) {
        self.in_guest.store(in_guest, Ordering::Relaxed);
    }

    pub fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::Relaxed)
    }

    /// Somebody killed it whose guest would not.
    pub fn note_killed(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    /// Somebody killed it while the guest was asked to run it.
    pub fn note_doomed(&self) {
        self.doomed.store(true, Ordering::SeqCst);
    }

    pub fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }

    /// Somebody kills it in order to delete it.
    pub fn note_deleted(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }

    /// The outcome, when what killed it is known better than by its signal.
    pub fn known_better(&self, mut outcome: Outcome) -> Outcome {
        let killed =
            outcome.end.cause == Cause::Signaled && outcome.end.code == signal_code(SIGKILL);
        if killed && self.deleted.load(Ordering::Relaxed) {
            outcome.end.cause = Cause::Deleted;
        }
        outcome
    }

    /// How it ended with its sandbox.
    pub fn outcome_of_loss(&self, loss: &Loss) -> Outcome {
        let mut outcome = Outcome::of_loss(loss);
        if self.killed.load(Ordering::Relaxed) {
            outcome.end.cause = Cause::Signaled;
            outcome.detail = Some("its VM was killed, since the guest did not obey".into());
        }
        outcome
    }

    /// Tells the monitor the end and waits until the output is passed on, for as long as a slow reader takes.
    ///
    /// The monitor of an engine that calls us is waited for only so long: a fifo whose reader is gone is never emptied, and
    /// the engine reads on after it has heard of the end.
    /// With all of it passed on, that monitor exits: who hears of the end finds no process of its number any more.
    pub async fn drain(&self, end: End) {
        let handover = self.handover.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut handover) = handover {
            if end.stdout_bytes.is_some() && timeout(HANDOVER, &mut handover).await.is_err() {
                tracing::warn!("the streams of an ended process did not arrive");
            }
            // A guest may never send them.
            handover.abort();
        }
        self.monitor.end(end).await;
        let drained = self.drained.notified();
        if !self.monitor.is_ours() {
            drained.await;
        } else if timeout(LATE_OUTPUT, drained).await.is_err() {
            tracing::debug!(pid = self.monitor.pid, "output is read on after the end");
        } else {
            self.note_drained();
            self.monitor.dismiss();
            if timeout(LAST_STEPS, self.monitor.reaped()).await.is_err() {
                tracing::warn!(pid = self.monitor.pid, "a monitor takes its time to exit");
            }
        }
    }

    /// Lets the monitor exit: at once on the command line, else when all output is passed on.
    pub async fn dismiss(self: Arc<Self>) {
        if self.monitor.is_ours() {
            self.drained.notified().await;
            self.note_drained();
        }
        self.monitor.dismiss();
    }

    /// Ends a monitor of ours whose output nobody has read until its process was deleted.
    pub async fn kill_monitor(&self) {
        if self.monitor.is_ours() && timeout(LATE_OUTPUT, self.drained.notified()).await.is_err() {
            tracing::warn!(pid = self.monitor.pid, "output that nobody reads is thrown away");
            self.monitor.kill();
        }
        self.note_drained();
    }

    /// Kinds of streams that its monitor has a use for.
    fn kinds(&self) -> &'static [(Stream, StreamKind)] {
        if self.terminal {
            &[(Stream::Terminal, StreamKind::Terminal)]
        } else {
            &[
                (Stream::Stdin, StreamKind::Stdin),
                (Stream::Stdout, StreamKind::Stdout),
                (Stream::Stderr, StreamKind::Stderr),
            ]
        }
    }

    /// Expects the process's streams at the switchboard and hands them to the monitor when they have come.
    pub fn expect_streams(
        self: &Arc<Self>,
        board: &Switchboard,
        token: StreamToken,
    ) -> agent::Stdio {
        // Without a token the process gets the guest's own /dev/null.
        let kinds: Vec<_> =
            self.kinds().iter().filter(|(kind, _)| !self.monitor.discards(*kind)).collect();
        let waiting: Vec<_> =
            kinds.iter().map(|(kind, wire)| (*kind, board.expect(token, *wire))).collect();
        let process = Arc::clone(self);
        let handover = tokio::spawn(async move {
            let mut streams = Vec::new();
            for (kind, receiver) in waiting {
                // A process that never started has no streams, and its monitor needs none.
                let Ok(stream) = receiver.await else { return };
                streams.push((kind, stream));
            }
            process.monitor.hand_over(streams).await;
        });
        *self.handover.lock().unwrap_or_else(PoisonError::into_inner) = Some(handover);
        let size = self.size();
        *self.first_size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        let mut stdio = agent::Stdio {
            terminal: self.terminal,
            rows: size.map_or(0, |size| size.rows.into()),
            columns: size.map_or(0, |size| size.columns.into()),
            bare_newlines: self.monitor.callers_terminal,
            ..Default::default()
        };
        for (kind, _) in kinds {
            let place = match kind {
                Stream::Stdin => &mut stdio.stdin_token,
                Stream::Stdout => &mut stdio.stdout_token,
                Stream::Stderr => &mut stdio.stderr_token,
                Stream::Terminal => &mut stdio.terminal_token,
            };
            *place = token.to_vec();
        }
        stdio
    }

    /// The next thing its monitor says.
    pub async fn next_word(&self) -> Option<ToShim> {
        self.monitor.next().await
    }
}

impl Outcome {
    /// As the agent tells it.
    pub fn of_agent(end: &agent::ProcessEnd) -> Self {
        let (code, cause) = match end.signal {
            0 => (u8::try_from(end.exit_code & 0xff).unwrap_or(u8::MAX), Cause::Exited),
            // The OOM killer's signal; by any other one the process ended of something else.
            SIGKILL if end.oom_killed => (signal_code(SIGKILL), Cause::Oom),
            SIGKILL if end.guest_oom => (signal_code(SIGKILL), Cause::GuestOom),
            signal => (signal_code(signal), Cause::Signaled),
        };
        let end = End {
            code,
            cause,
            stdout_bytes: Some(end.stdout_bytes),
            stderr_bytes: Some(end.stderr_bytes),
            grace_ms: 0,
        };
        Self { end, detail: None }
    }

    /// As it follows from what became of the sandbox.
    pub fn of_loss(loss: &Loss) -> Self {
        let (cause, detail) = match loss {
            Loss::GuestPanic(text) => (Cause::GuestPanic, Some(text.clone())),
            Loss::GuestOom(text) => (Cause::GuestOom, Some(text.clone())),
            Loss::GuestReset(text) => (Cause::GuestReset, Some(text.clone())),
            Loss::GuestStuck(text) => (Cause::GuestStuck, Some(text.clone())),
            Loss::GuestSilent(text) => (Cause::GuestSilent, Some(text.clone())),
            Loss::VmmCrash(text) => (Cause::VmmCrashed, Some(text.clone())),
            Loss::HostOom(text) => (Cause::HostOom, Some(text.clone())),
            Loss::ProxyCrash(text) => (Cause::ProxyCrashed, Some(text.clone())),
            Loss::Agent(text) => (Cause::AgentLost, Some(text.clone())),
            Loss::Vmm(text) => (Cause::VmmKilled, Some(text.clone())),
            Loss::Proxy(text) => (Cause::ProxyKilled, Some(text.clone())),
            Loss::Stopped => (Cause::Unknown, None),
        };
        Self {
            end: End { code: LOST, cause, stdout_bytes: None, stderr_bytes: None, grace_ms: 0 },
            detail,
        }
    }

    /// Without anything having run.
    pub fn unstarted(code: u8, cause: Cause, detail: Option<String>) -> Self {
        let none = Some(0);
        Self {
            end: End { code, cause, stdout_bytes: none, stderr_bytes: none, grace_ms: 0 },
            detail,
        }
    }

    /// As it is recorded.
    pub fn recorded(&self) -> Ended {
        Ended::new(self.end.code, self.end.cause, self.detail.clone())
    }
}

/// 128 + signal, as shells have it.
pub fn signal_code(signal: u32) -> u8 {
    u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
