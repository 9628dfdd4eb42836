//! A hypervisor without a machine, for tests of what stands on the trait.
//!
//! The test plays the guest: through a [`FakeGuest`] it writes to the console and ends the VM as it likes.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{Console, Fatal, Hypervisor, HypervisorError, VmConfig, VmEnd};

/// What a [`Fake`] is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeState {
    /// Not booted.
    New,
    /// Its processors run.
    Running,
    /// They do not.
    Paused,
    /// It is over.
    Ended(VmEnd),
}

#[derive(Debug)]
struct Machine {
    /// Changes of state are made under the sender's own lock.
    state: watch::Sender<FakeState>,
    console: Console,
    /// Dropped with the end, so that the backends see their sockets closed, as with a real VMM.
    config: Mutex<Option<VmConfig>>,
}

impl Machine {
    fn config(&self) -> MutexGuard<'_, Option<VmConfig>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: VmEnd) {
        self.state.send_if_modified(|state| {
            let alive = !matches!(state, FakeState::Ended(_));
            if alive {
                *state = FakeState::Ended(end);
            }
            alive
        });
        self.config().take();
    }

    /// Changes the state by a step that may refuse.
    fn step(
        &self,
        operation: &'static str,
        step: impl FnOnce(&FakeState) -> Result<FakeState, &'static str>,
    ) -> Result<(), HypervisorError> {
        let mut result = Ok(());
        self.state.send_if_modified(|state| match step(state) {
            Ok(next) => {
                *state = next;
                true
            }
            Err(state) => {
                result = Err(HypervisorError::State { operation, state });
                false
            }
        });
        result
    }
}

/// A VM that executes nothing.
#[derive(Debug)]
pub struct Fake {
    machine: Arc<Machine>,
}

/// The other side of a [`Fake`]: what a guest, or a misfortune, would do.
#[derive(Debug, Clone)]
pub struct FakeGuest {
    machine: Arc<Machine>,
}

impl Fake {
    /// A VM, and the strings of its guest.
    pub fn new(config: VmConfig) -> (Self, FakeGuest) {
        let machine = Arc::new(Machine {
            state: watch::Sender::new(FakeState::New),
            console: Console::default(),
            config: Mutex::new(Some(config)),
        });
        (Self { machine: machine.clone() }, FakeGuest { machine })
    }
}

impl FakeGuest {
    /// What the VM is doing.
    pub fn state(&self) -> FakeState {
        self.machine.state.borrow().clone()
    }

    /// Takes the configuration, for a test that plays the frontends; the VM then has none.
    pub fn take_config(&self) -> Option<VmConfig> {
        self.machine.config().take()
    }

    /// Waits for a state.
    pub async fn reached(&self, wanted: &FakeState) {
        let mut state = self.machine.state.subscribe();
        if state.wait_for(|state| state == wanted).await.is_err() {
            // The sender is `self`'s, so it outlives the wait.
            std::future::pending::<()>().await;
        }
    }

    /// Writes to the console; a kernel's panic or end among it ends the VM.
    pub fn print(&self, text: &str) {
        self.machine.console.feed(text.as_bytes());
        let words = || self.machine.console.last_words();
        match self.machine.console.fatal() {
            Some(Fatal::Panic) => self.machine.end(VmEnd::GuestPanic(words())),
            Some(Fatal::InitDied) => self.machine.end(VmEnd::AgentDied(words())),
            Some(Fatal::Off) => self.machine.end(VmEnd::GuestOff),
            None => {}
        }
    }

    /// Ends the VM.
    pub fn end(&self, end: VmEnd) {
        self.machine.end(end);
    }
}

#[async_trait]
impl Hypervisor for Fake {
    async fn boot(&self) -> Result<(), HypervisorError> {
        let missing = |what, path: &PathBuf| match std::fs::metadata(path) {
            Ok(_) => Ok(()),
            Err(source) => Err(HypervisorError::File { what, path: path.clone(), source }),
        };
        let checked = match &*self.machine.config() {
            Some(config) => {
                missing("kernel", &config.kernel).and(missing("initrd", &config.initrd))
            }
            None => Ok(()),
        };
        self.machine.step("boot", |state| match state {
            FakeState::New => Ok(FakeState::Running),
            _ => Err("was booted or stopped before"),
        })?;
        checked.inspect_err(|_| self.machine.end(VmEnd::Stopped))
    }

    async fn stop(&self) -> Result<(), HypervisorError> {
        self.machine.end(VmEnd::Stopped);
        Ok(())
    }

    async fn wait(&self) -> VmEnd {
        let mut state = self.machine.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, FakeState::Ended(_))).await;
        match ended.map(|state| state.clone()) {
            Ok(FakeState::Ended(end)) => end,
            // The sender is `self`'s, so it outlives the wait.
            _ => std::future::pending().await,
        }
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.machine.step("pause", |state| halted(state, FakeState::Paused))
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.machine.step("resume", |state| halted(state, FakeState::Running))
    }

    async fn runs(&self) -> Result<bool, HypervisorError> {
        let state = self.machine.state.borrow();
        match halted(&state, FakeState::Running) {
            Ok(_) => Ok(matches!(*state, FakeState::Running)),
            Err(state) => Err(HypervisorError::State { operation: "tell its status", state }),
        }
    }

    fn console_tail(&self) -> String {
        self.machine.console.tail()
    }
}

fn halted(state: &FakeState, next: FakeState) -> Result<FakeState, &'static str> {
    match state {
        FakeState::New => Err("has not booted"),
        FakeState::Running | FakeState::Paused => Ok(next),
        FakeState::Ended(_) => Err("has ended"),
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.machine.end(VmEnd::Stopped);
    }
}
