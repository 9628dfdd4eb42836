//! The QEMU driver.
//!
//! [`Qemu::new`] does what can be done before anyone waits for a guest: it finds libraries and firmware and checks the
//! kernel. [`boot`](Hypervisor::boot) starts the process with every descriptor in place. From then on a supervisor
//! task owns the child: it hears the end from the pidfd, the reason from QMP and the console, and publishes one
//! [`VmEnd`]. Nothing polls.
//!
//! ```text
//!            ┌ console socket ─► reader ─► Console (tail, "Kernel panic") ─┐
//! QEMU ──────┤ QMP socket ─────► Qmp task ─► events (SHUTDOWN, …) ─────────┼─► supervisor ─► VmEnd
//!            ├ stderr pipe ────► reader ─► tail ───────────────────────────┤
//!            └ pidfd ──────────────────────────────────────────────────────┘
//! ```
//!
//! QEMU ends with the *thread* that started it. So `boot` is awaited on a runtime's own threads (main or worker), never
//! on one of the blocking pool, which end when they are idle.
//!
//! A guest that says it dies but does not, and a QEMU that says it ends but does not, are killed after a grace.

mod command_line;
mod files;
mod hotplug;
mod launch;
mod supervisor;
mod verify;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kata_sys::spawn::Child;
use rustix::process::Pid;
use tokio::sync::watch;

use crate::{Console, Hypervisor, HypervisorError, VmConfig, VmEnd, qmp::Qmp};
use files::Files;
use hotplug::Ports;
use supervisor::{Supervised, supervise};

pub use files::Kernel;
pub use hotplug::Plugged;
pub use verify::{MINIMUM_VERSION, Missing, Verified, VerifyError, Version, verify};

/// QEMU answers 0.1 s after its start on an idle host; eight of them, emulated, on two busy cores were seen to need
/// seconds. The ceiling only catches a dead one.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// For commands to a running VM; `stop` and `cont` wait for every virtual processor to come out of the guest, which takes longest.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// How the VMM is jailed.
#[derive(Debug, Clone)]
pub struct JailSettings {
    /// Command that calls [`crate::jail::enter_and_exec`]; nothing is appended to it.
    pub launcher: Vec<String>,
    /// The VMM's own user and group id.
    pub user: u32,
}

/// Where QEMU is and how it is confined.
#[derive(Debug)]
pub struct QemuSettings {
    /// `qemu-system-…`; its firmware lies in `../share` beside it.
    pub binary: PathBuf,
    /// Without one QEMU runs as the caller does: for measurements and tests only.
    pub jail: Option<JailSettings>,
    /// `cgroup.procs` files of the groups that it joins in its first lines; only with a jail.
    pub cgroup_procs: Vec<PathBuf>,
}

enum State {
    New(Box<VmConfig>),
    Running(Running),
    Ended,
}

#[derive(Clone)]
struct Running {
    child: Arc<Child>,
    qmp: Qmp,
}

/// One VM under QEMU. Dropping it kills the VMM.
pub struct Qemu {
    settings: QemuSettings,
    files: Files,
    state: Mutex<State>,
    console: Arc<Console>,
    end: watch::Sender<Option<VmEnd>>,
    /// What is taken of the places for cards that are added.
    ports: Arc<Ports>,
    /// Set before we kill, so that the supervisor knows whose doing it was.
    stopping: Arc<watch::Sender<bool>>,
}

impl Qemu {
    /// Prepares a VM; starts nothing.
    ///
    /// # Errors
    /// Kernel, initrd, libraries or firmware that are not there or not what they should be, and a machine that lacks
    /// what the configuration asks for.
    pub fn new(settings: QemuSettings, config: VmConfig) -> Result<Self, HypervisorError> {
        let files = Files::find(&settings, &config)?;
        command_line::check(&config)?;
        let ports = Arc::new(Ports::new(config.nic_ports));
        Ok(Self {
            ports,
            settings,
            files,
            state: Mutex::new(State::New(Box::new(config))),
            console: Arc::new(Console::default()),
            end: watch::Sender::new(None),
            stopping: Arc::new(watch::Sender::new(false)),
        })
    }

    /// The VMM's process, as long as the VM lives.
    pub fn pid(&self) -> Option<Pid> {
        match &*self.state() {
            State::Running(running) if self.end.borrow().is_none() => Some(running.child.pid),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running VM; otherwise why `operation` is out of the question.
    fn running(&self, operation: &'static str) -> Result<Running, HypervisorError> {
        let refused = |state| Err(HypervisorError::State { operation, state });
        match &*self.state() {
            State::New(_) => refused("has not booted"),
            State::Running(running) if self.end.borrow().is_none() => Ok(running.clone()),
            State::Running(_) | State::Ended => refused("has ended"),
        }
    }

    fn publish(&self, end: VmEnd) {
        self.end.send_if_modified(|known| known.is_none() && known.replace(end).is_none());
    }

    fn start(&self) -> Result<Running, HypervisorError> {
        let mut state = self.state();
        let config = match std::mem::replace(&mut *state, State::Ended) {
            State::New(config) => *config,
            other => {
                *state = other;
                let state = "was booted or stopped before";
                return Err(HypervisorError::State { operation: "boot", state });
            }
        };
        let launched = launch::launch(&self.settings, &self.files, config)
            .inspect_err(|_| self.publish(VmEnd::Stopped))?;
        let child = Arc::new(launched.child);
        let qmp = Qmp::start(launched.qmp);
        let running = Running { child: child.clone(), qmp: qmp.clone() };
        tokio::spawn(supervise(
            Supervised {
                child,
                pidfd: launched.pidfd,
                events: qmp.events(),
                qmp,
                console: self.console.clone(),
                console_socket: launched.console,
                stderr: launched.stderr,
                stopping: self.stopping.subscribe(),
                lifeline: launched.lifeline,
            },
            self.end.clone(),
        ));
        *state = State::Running(running.clone());
        Ok(running)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn boot(&self) -> Result<(), HypervisorError> {
        let running = self.start()?;
        tokio::select! {
            // Evidence of the end comes first, with its cause.
            biased;
            end = self.wait() => Err(HypervisorError::Boot(end)),
            result = running.qmp.execute("query-status", BOOT_DEADLINE) => match result {
                Ok(_) => Ok(()),
                Err(crate::qmp::QmpError::Closed) => Err(HypervisorError::Boot(self.wait().await)),
                Err(crate::qmp::QmpError::Deadline(deadline)) => {
                    self.stop().await?;
                    Err(HypervisorError::BootDeadline(deadline))
                }
                Err(source) => {
                    self.stop().await?;
                    Err(HypervisorError::Command { operation: "tell its status", source })
                }
            },
        }
    }

    async fn stop(&self) -> Result<(), HypervisorError> {
        {
            let mut state = self.state();
            match &*state {
                State::New(_) => {
                    *state = State::Ended;
                    self.publish(VmEnd::Stopped);
                    return Ok(());
                }
                State::Running(running) if self.end.borrow().is_none() => {
                    self.stopping.send_replace(true);
                    running.child.kill().map_err(HypervisorError::Kill)?;
                }
                State::Running(_) | State::Ended => return Ok(()),
            }
        }
        self.wait().await;
        Ok(())
    }

    async fn wait(&self) -> VmEnd {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await.map(|end| end.clone()) {
            Ok(Some(end)) => end,
            // The sender is `self`'s, so it outlives the wait.
            _ => std::future::pending().await,
        }
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        let qmp = self.running("pause")?.qmp;
        let result = qmp.execute("stop", COMMAND_DEADLINE).await;
        result.map(drop).map_err(|source| HypervisorError::Command { operation: "pause", source })
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        let qmp = self.running("resume")?.qmp;
        let result = qmp.execute("cont", COMMAND_DEADLINE).await;
        result.map(drop).map_err(|source| HypervisorError::Command { operation: "resume", source })
    }

    async fn runs(&self) -> Result<bool, HypervisorError> {
        let qmp = self.running("tell its status")?.qmp;
        let status = qmp.execute("query-status", COMMAND_DEADLINE).await;
        status
            .map(|status| status["running"] == true)
            .map_err(|source| HypervisorError::Command { operation: "tell its status", source })
    }

    fn console_tail(&self) -> String {
        self.console.tail()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let State::Running(running) = &*self.state() {
            self.stopping.send_replace(true);
            // Nobody is left to tell; if it has ended already, that is what was wanted.
            running.child.kill().ok();
        }
    }
}
