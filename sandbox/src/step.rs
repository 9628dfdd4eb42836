//! The seam: every change that the host side makes to the world passes through [`Steps`], which names it.
//!
//! Tracing, the record's "failed at" and fault injection all hang on this one place. A fault is asked for with
//! the environment variable `KATA_FAULT=NAME=fail` (the step fails) or `KATA_FAULT=NAME=kill` (the process is killed
//! right before the step), so that a test can stop the shim at each step of a sandbox's life.

use std::{env, fmt, sync::Mutex};

use thiserror::Error;

/// One kind of change to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names say it all, and are what tests and logs use.
pub enum Step {
    WriteLedger,
    WriteRecord,
    MakeCgroup,
    LimitCgroup,
    MountSharedTree,
    AttachRoot,
    AttachVolume,
    OpenVolume,
    MakeWritable,
    MountLayers,
    SetSysctls,
    ScanNetwork,
    MakeTap,
    RedirectLink,
    LimitLink,
    RestoreLink,
    OpenLocalhost,
    CloseLocalhost,
    SpawnProxy,
    BootVmm,
    RankProcess,
    PlugCard,
    UnplugCard,
    AwaitAgent,
    StartSandbox,
    CallAgent,
    StopVmm,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A fault that a test asked for.
#[derive(Debug, Error)]
#[error("step {0} fails because KATA_FAULT asks for it")]
pub struct InjectedFault(pub Step);

/// Watches the steps of one sandbox.
#[derive(Debug, Default)]
pub struct Steps {
    fault: Option<Fault>,
    last: Mutex<Option<Step>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    step: String,
    kill: bool,
}

impl Steps {
    /// Steps that obey `KATA_FAULT`.
    pub fn from_environment() -> Self {
        Self {
            fault: env::var("KATA_FAULT").ok().and_then(|text| parse_fault(&text)),
            last: Mutex::default(),
        }
    }

    /// Says that `step` comes next.
    ///
    /// # Errors
    /// [`InjectedFault`] when a test wants this step to fail; the caller treats it like any failure of the step.
    pub fn enter(&self, step: Step) -> Result<(), InjectedFault> {
        tracing::debug!(%step, "step");
        if let Ok(mut last) = self.last.lock() {
            *last = Some(step);
        }
        match &self.fault {
            Some(fault) if fault.step == step.to_string() => {
                if fault.kill {
                    let me = rustix::process::getpid();
                    match rustix::process::kill_process(me, rustix::process::Signal::KILL) {
                        // Another thread may be the one that takes the signal: until then nothing goes on.
                        Ok(()) => loop {
                            std::thread::park();
                        },
                        Err(error) => tracing::error!(%error, "kill this process for KATA_FAULT"),
                    }
                }
                Err(InjectedFault(step))
            }
            _ => Ok(()),
        }
    }

    /// The step that was entered last: where a sandbox that stopped got to.
    pub fn last(&self) -> Option<Step> {
        self.last.lock().ok().and_then(|last| *last)
    }
}

fn parse_fault(text: &str) -> Option<Fault> {
    let (step, what) = text.split_once('=')?;
    let kill = match what {
        "kill" => true,
        "fail" => false,
        _ => return None,
    };
    Some(Fault { step: step.to_owned(), kill })
}

#[cfg(test)]
mod tests {
    use super::{Fault, Step, Steps, parse_fault};

    #[test]
    fn only_the_named_step_fails() {
        let steps = Steps { fault: parse_fault("SpawnProxy=fail"), ..Steps::default() };
        assert!(steps.enter(Step::BootVmm).is_ok());
        assert!(steps.enter(Step::SpawnProxy).is_err());
        assert_eq!(steps.last(), Some(Step::SpawnProxy));
    }

    #[test]
    fn a_fault_is_read_as_step_and_kind() {
        assert_eq!(parse_fault("A=kill"), Some(Fault { step: "A".into(), kill: true }));
        assert_eq!(parse_fault("A"), None);
    }
}
