//! What a process's monitor says, and what its silence means.

use std::sync::Arc;

use kata_engine_api::{control::ToShim, record::Cause};
use tokio::sync::mpsc;

use super::{Container, Role};
use crate::process::{LOST, Outcome, Phase, Process, SIGKILL};

/// What a monitor may say ahead of the guest: more signals than that merge anyway.
const WORDS: usize = 64;

impl Container {
    /// Hears a process's monitor until it is gone. It never waits for anything else: what the monitor asks of the guest is
    /// done by [`Container::obey`], so that a guest that hangs can't hide that the output is drained or the monitor dead.
    pub(super) async fn listen(self: Arc<Self>, process: Arc<Process>) {
        let (words, waiting) = mpsc::channel(WORDS);
        tokio::spawn(self.clone().obey(process.clone(), waiting));
        while let Some(word) = process.next_word().await {
            match word {
                ToShim::Drained {} => process.note_drained(),
                ToShim::Dial(dial) => {
                    tokio::spawn(self.clone().dial(process.clone(), dial));
                }
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
                ToShim::Drained {} | ToShim::Dial(_) => Ok(()),
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
                if phase == Phase::Starting && self.role != Role::Member {
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
}
