//! A container: one cgroup, one init, and the processes that were added.
//!
//! ```text
//! created (gate) ── start ─► running ── init ends ─► stopped ── delete init ─► gone
//! ```
//!
//! Stopped is not stored: it is that init's end has come. A created or running container can be paused and resumed.
//! Locks are held for a lookup only, never over an await.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use kata_protocol::agent::ProcessDetails;
use kata_sys::signal_number::SignalNumber;
use rustix::process::Pid;
use tokio::task::spawn_blocking;

use crate::{
    cgroup::{Cgroup, Freezer},
    helper::nodes_of,
    launch::{Gate, launch},
    nursery::Nursery,
    order::{self, Failure, FailureKind, Kind, Order, Step, TerminalSize},
    places::Places,
    process::{Parts, Process},
    process_table,
    reaper::{Exit, Reaper},
    spec::{Linux, NamespaceKind, Resources, Shared, Spec},
    streams::{Streams, Wanted},
    trees::{Trees, Uses},
};

/// A container that has been created.
pub struct Container {
    pub id: String,
    /// What its processes have in common.
    shared: Shared,
    /// Its system call filters, compiled.
    filters: OwnedFd,
    /// Its cgroup namespace, if init lived to have one.
    groups: Option<OwnedFd>,
    cgroup: Arc<Mutex<Cgroup>>,
    uses: Arc<Uses>,
    init: Arc<Process>,
    /// Holds init back until it is started.
    gate: Mutex<Option<Gate>>,
    /// The signal that ended init before its program ran.
    killed_early_by: Arc<AtomicU32>,
    paused: AtomicBool,
    updating: tokio::sync::Mutex<()>,
    listing: Arc<tokio::sync::Mutex<()>>,
    /// Added processes by exec id.
    added: Places<Process>,
}

/// Who makes the processes of all containers, who hears of their ends, and what they are made of.
#[derive(Default)]
pub struct Makers {
    pub nursery: Nursery,
    pub reaper: Arc<Reaper>,
    pub trees: Arc<Trees>,
}

/// What a container is created from.
pub struct Creation {
    pub id: String,
    pub spec: Vec<u8>,
    pub root: String,
    pub streams: Wanted,
}

impl Container {
    /// Makes cgroup, namespaces, root and init; nothing is left when that fails.
    pub async fn create(creation: Creation, makers: &Makers) -> Result<Self, Failure> {
        let spec: Spec = serde_json::from_slice(&creation.spec)
            .map_err(|error| Failure::invalid(format!("spec: {error}")))?;
        let cgroup = Cgroup::create(&creation.id, &spec)?;
        let cgroup = Arc::new(Mutex::new(cgroup));
        let id = creation.id.clone();
        let uses = makers.trees.used_by(&creation.root, &spec).await;
        let held = (cgroup.clone(), uses.clone());
        match Self::create_in(creation, &spec, held, makers).await {
            Ok(container) => Ok(container),
            Err(failure) => {
                // All of it, whatever fails: nobody asks again.
                let emptied = empty(&id, &cgroup).await;
                let abolished = emptied.and(uses.end().await).and(lock(&cgroup).remove());
                abolished.step(|| format!("{failure}; and then clean up"))?;
                Err(failure)
            }
        }
    }

    async fn create_in(
        creation: Creation,
        spec: &Spec,
        (cgroup, uses): (Arc<Mutex<Cgroup>>, Arc<Uses>),
        makers: &Makers,
    ) -> Result<Self, Failure> {
        let Creation { id, spec: document, root, streams: wanted } = creation;
        let launching = makers.reaper.launching();
        let document = order::document(&document).step(|| "keep the spec")?;
        let birthplace = lock(&cgroup).birthplace(None).step(|| "open the cgroup")?;
        let kind = Kind::Init { container_id: id.clone(), root };
        let order = Order { terminal: terminal_size(&wanted), kind };
        let streams = Streams::open(&wanted).await?;
        let files = [birthplace.as_fd(), document.as_fd()];
        let mut launched = launch(&makers.nursery, &order, &files, &streams.child).await?;
        let filters = launched.filters.take();
        let filters = filters.ok_or_else(|| Failure::invalid("the helper gave no filters"))?;
        wanted.set_modes(launched.terminal.as_ref())?;
        // It waits, or was killed right now: then the number is nobody's yet, for a number comes back much later.
        let groups = File::open(format!("/proc/{}/ns/cgroup", launched.pid)).ok();
        let (parts, gate) = Parts::new(launched, streams);
        let linux = spec.linux.as_ref();
        let alone = linux.is_some_and(|linux| linux.makes(NamespaceKind::Pid));
        let ended_in = cgroup.clone();
        let killed_early_by = Arc::new(AtomicU32::new(0));
        let early = killed_early_by.clone();
        let init = Process::adopt(parts, &makers.reaper, move |exit| {
            let cgroup = lock(&ended_in);
            if !alone {
                // Without a pid namespace of its own nothing else ends the rest.
                cgroup.kill().ok();
            }
            let exit = match early.load(Ordering::Relaxed) {
                0 => exit,
                signal => Exit::Signal(signal),
            };
            (exit, cgroup.oom())
        })?;
        drop(launching);
        Ok(Self {
            id,
            shared: linux.map(Linux::shared).unwrap_or_default(),
            filters,
            groups: groups.map(OwnedFd::from),
            cgroup,
            uses,
            init,
            gate: Mutex::new(Some(gate)),
            killed_early_by,
            paused: AtomicBool::new(false),
            updating: tokio::sync::Mutex::default(),
            listing: Arc::default(),
            added: Places::default(),
        })
    }

    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Has init execute its program.
    pub async fn start(&self) -> Result<(), Failure> {
        self.must_live("start")?;
        let gate = lock(&self.gate).take();
        gate.ok_or_else(|| self.refuse("start", "started already"))?.open().await
    }

    /// Adds a process, and starts it.
    pub async fn exec(
        &self,
        exec_id: &str,
        process: &[u8],
        wanted: &Wanted,
        makers: &Makers,
    ) -> Result<Arc<Process>, Failure> {
        self.must_live("exec in")?;
        let holder = self.added.hold(exec_id).ok_or_else(|| Failure {
            kind: FailureKind::Exists,
            message: format!("container {} has a process {exec_id} already", self.id),
        })?;
        let added = self.exec_reserved(process, wanted, makers).await;
        let is_wanted = self.added.settle(&holder, added.as_ref().ok());
        let process = added?;
        if !is_wanted {
            // One that has ended by itself is as good.
            process.signal(SignalNumber::KILL).ok();
            return Err(self.refuse("exec in", "no longer wanted there"));
        }
        Ok(process)
    }

    async fn exec_reserved(
        &self,
        process: &[u8],
        wanted: &Wanted,
        makers: &Makers,
    ) -> Result<Arc<Process>, Failure> {
        let launching = makers.reaper.launching();
        let process = order::document(process).step(|| "keep the process")?;
        let birthplace =
            lock(&self.cgroup).birthplace(Some(self.init.pid)).step(|| "open the cgroup")?;
        let order = Order {
            terminal: terminal_size(wanted),
            kind: Kind::Exec { container_id: self.id.clone(), shared: self.shared.clone() },
        };
        let streams = Streams::open(wanted).await?;
        let groups = self.groups.as_ref().ok_or_else(|| self.refuse("exec in", "stopped"))?;
        let files = [&birthplace, &process, self.init.pidfd(), groups, &self.filters];
        let files = files.map(AsFd::as_fd);
        let launched = launch(&makers.nursery, &order, &files, &streams.child).await?;
        wanted.set_modes(launched.terminal.as_ref())?;
        let (parts, gate) = Parts::new(launched, streams);
        let cgroup = self.cgroup.clone();
        let process =
            Process::adopt(parts, &makers.reaper, move |exit| (exit, lock(&cgroup).oom()))?;
        drop(launching);
        gate.open().await?;
        Ok(process)
    }

    /// A process by its exec id; the empty one is init's.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.added.get(exec_id).ok_or_else(|| Failure {
            kind: FailureKind::NotFound,
            message: format!("container {} has no process {exec_id}", self.id),
        })
    }

    /// Sends a signal to one process.
    pub fn signal(&self, exec_id: &str, signal: SignalNumber) -> Result<(), Failure> {
        let process = self.process(exec_id)?;
        if signal == SignalNumber::KILL {
            lock(&self.cgroup).expect_kill();
        }
        let early = exec_id.is_empty() && lock(&self.gate).is_some() && signal.ends_a_program();
        let sent = if early {
            // The kernel spares the first process of a pid namespace what it has no handler for; its program would
            // have had none either, but whoever kills what never ran means it.
            self.killed_early_by.store(signal.number(), Ordering::Relaxed);
            process.signal(SignalNumber::KILL)
        } else {
            process.signal(signal)
        };
        sent.map_err(|_| Failure {
            kind: FailureKind::NotFound,
            message: "the process has ended already".into(),
        })
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, signal: SignalNumber) -> Result<(), Failure> {
        let mut cgroup = lock(&self.cgroup);
        if signal == SignalNumber::KILL {
            cgroup.expect_kill();
            return cgroup.kill().step(|| "kill the container");
        }
        for pid in cgroup.processes().step(|| "list the container's processes")? {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // One that has ended meanwhile needs no signal.
            if let Some(pid) = pid {
                signal.send_to(pid).ok();
            }
        }
        Ok(())
    }

    /// Its processes, as they are told. A process can have whoever looks at it wait, for ever: so a thread does, and no second one
    /// for the same container.
    pub async fn processes(&self) -> Result<Vec<ProcessDetails>, Failure> {
        let listing = self.listing.clone().lock_owned().await;
        let pids = lock(&self.cgroup).processes().step(|| "list the container's processes")?;
        let details = spawn_blocking(move || {
            let details = process_table::details(&pids);
            drop(listing);
            details
        });
        details.await.step(|| "look at the container's processes")
    }

    /// Stops all processes, and returns when they stand still.
    pub async fn pause(&self) -> Result<(), Failure> {
        self.must_live("pause")?;
        self.freezing(Freezer::Freeze).await.step(|| "freeze the container")
    }

    /// Lets all processes go on, also those of which the host does not know whether they have stopped, or go on already.
    pub async fn resume(&self) -> Result<(), Failure> {
        if self.init.ended().is_some() {
            return Err(self.refuse("resume", "stopped"));
        }
        self.freezing(Freezer::Thaw).await.step(|| "thaw the container")
    }

    async fn freezing(&self, freezer: Freezer) -> std::io::Result<()> {
        let events = lock(&self.cgroup).freeze(freezer)?;
        // Before it is waited for: the host may give the wait up, and what was asked of the kernel holds all the same.
        self.paused.store(freezer == Freezer::Freeze, Ordering::Relaxed);
        events.reached().await
    }

    /// Changes limits.
    pub async fn update(&self, resources: Resources) -> Result<(), Failure> {
        if self.init.ended().is_some() {
            return Err(self.refuse("update", "stopped"));
        }
        let _one_at_a_time = self.updating.lock().await;
        let limits = lock(&self.cgroup).limits();
        let updated = spawn_blocking(move || limits.update(&resources).map(|()| resources)).await;
        let resources = updated.step(|| "update the container")??;
        lock(&self.cgroup).update_devices(&resources)
    }

    /// Waits until the OOM killer has struck more often than `seen`, or init has ended; returns how often.
    pub async fn oom_kills_beyond(&self, seen: u64) -> Result<u64, Failure> {
        let kills = lock(&self.cgroup).oom_kills().step(|| "watch memory.events")?;
        tokio::select! {
            reached = kills.beyond(seen) => reached.step(|| "wait for memory.events"),
            _ = self.init.wait() => kills.now().step(|| "read memory.events"),
        }
    }

    pub fn statistics(&self) -> Result<HashMap<String, String>, Failure> {
        lock(&self.cgroup).statistics().step(|| "read the container's statistics")
    }

    /// Forgets an added process that has ended; one that is still being made is killed as soon as it is there.
    pub fn delete_added(&self, exec_id: &str) -> Result<(), Failure> {
        if self.added.give_up(exec_id) {
            return Ok(());
        }
        let process = self.process(exec_id)?;
        if process.ended().is_none() {
            return Err(self.refuse(&format!("delete process {exec_id} of"), "running it"));
        }
        self.added.forget(exec_id, &process);
        Ok(())
    }

    /// Forgets an added process that has ended, unless somebody has: its id may be another's by now.
    pub fn forget_added(&self, exec_id: &str, process: &Process) {
        self.added.forget(exec_id, process);
    }

    /// Frees everything that was made for a container whose init has ended.
    pub async fn delete(&self) -> Result<(), Failure> {
        if self.init.ended().is_none() {
            return Err(self.refuse("delete", "running"));
        }
        let what = || "remove the container's cgroup, devices and mounts";
        // The host's trees are let go of once nothing runs in them.
        empty(&self.id, &self.cgroup).await.step(what)?;
        self.uses.end().await.step(what)?;
        lock(&self.cgroup).remove().step(what)
    }

    fn must_live(&self, verb: &str) -> Result<(), Failure> {
        if self.init.ended().is_some() {
            return Err(self.refuse(verb, "stopped"));
        }
        if self.paused.load(Ordering::Relaxed) {
            return Err(self.refuse(verb, "paused"));
        }
        Ok(())
    }

    fn refuse(&self, verb: &str, state: &str) -> Failure {
        Failure {
            kind: FailureKind::State,
            message: format!("can't {verb} container {}: it is {state}", self.id),
        }
    }
}

/// Kills what is in the group of a container, waits until it is gone, and removes its devices.
async fn empty(container_id: &str, cgroup: &Mutex<Cgroup>) -> std::io::Result<()> {
    let empty = {
        let cgroup = lock(cgroup);
        // A frozen group is thawed by the kill itself.
        cgroup.kill()?;
        cgroup.emptiness()?
    };
    empty.reached().await?;
    match fs::remove_dir_all(nodes_of(container_id)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn terminal_size(wanted: &Wanted) -> Option<TerminalSize> {
    match wanted {
        Wanted::Terminal { size, .. } => Some(*size),
        Wanted::Pipes { .. } => None,
    }
}

/// No code panics while it holds one of our locks; should that change, the data are whole all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
