//! How a sandbox is lost, stopped and killed.

use std::{sync::Arc, time::Duration};

use kata_hypervisor::{Hypervisor, HypervisorError};
use kata_sys::spawn::{Child, Exit};
use tokio::time::timeout;

use super::{Sandbox, SandboxError};
use crate::{
    loss::{self, Loss},
    process,
    step::Step,
    vm::{Vm, VmError},
};

/// A VMM and a proxy that lose each other end one after the other; so long the news of the second may take.
const AFTERMATH: Duration = Duration::from_millis(400);

/// A proxy ends in order only when its VMM has left it, which then is ending for certain: what began it is that one's to
/// tell, however long a busy host takes for its end, or for a large guest's memory.
const CERTAIN_AFTERMATH: Duration = Duration::from_secs(30);

/// The agent's connection ends with either of them: a moment longer, so that they are heard first.
const AGENT_AFTERMATH: Duration = Duration::from_millis(700);

/// A killed process is gone within milliseconds, unless the host's kernel holds it.
const DEATH: Duration = Duration::from_secs(5);

/// What is kept of a console, in bytes.
const LAST_WORDS: usize = 4096;

impl Sandbox {
    /// Sees VMM and proxy end, and says once and for all what began it.
    pub(super) async fn watch(self: Arc<Self>, vm: Vm, proxy: Arc<Child>) {
        let vm_ended = vm.wait();
        let proxy_ended = process::exit(&proxy);
        tokio::pin!(vm_ended, proxy_ended);
        let loss = tokio::select! {
            vm = &mut vm_ended => {
                let proxy = timeout(AFTERMATH, &mut proxy_ended).await.ok();
                loss::decide(vm, proxy.as_ref())
            }
            proxy = &mut proxy_ended => {
                let left = matches!(proxy, Ok(Exit::Code(0)));
                let patience = if left { CERTAIN_AFTERMATH } else { AFTERMATH };
                match timeout(patience, &mut vm_ended).await {
                    Ok(vm) => loss::decide(vm, Some(&proxy)),
                    Err(_) => loss::of_proxy(&proxy),
                }
            }
        };
        let stopping = {
            let mut live = self.live();
            live.agent = None;
            live.stopping
        };
        let dead = self.end_processes(Some(&vm), Some(&proxy));
        if timeout(DEATH, dead).await.is_err() {
            tracing::error!("VMM or proxy survives SIGKILL: it is stuck in the host's kernel");
        }
        let loss = loss::by_host(loss, self.budget.group().oom_kills());
        let loss = if stopping { Loss::Stopped } else { loss };
        tracing::info!(loss = loss.describe(), "sandbox ended");
        self.lose(loss);
    }

    /// Waits until the sandbox is lost.
    pub async fn lost(&self) -> Loss {
        let mut loss = self.loss.subscribe();
        let found = loss.wait_for(Option::is_some).await;
        found.ok().and_then(|loss| loss.clone()).unwrap_or(Loss::Stopped)
    }

    /// The agent's connection has ended: says why, after a moment in which the cause may show itself.
    pub async fn agent_lost(self: &Arc<Self>) -> Loss {
        if let Ok(loss) = timeout(AGENT_AFTERMATH, self.lost()).await {
            return loss;
        }
        // On a slow host the news is late: whoever is dead already took the connection along, and will be named.
        let (vm, proxy) = self.processes();
        let dead = |proxy: &Child| proxy.has_ended().unwrap_or(false);
        let one_died =
            vm.is_some_and(|vm| vm.pid().is_none()) || proxy.is_some_and(|proxy| dead(&proxy));
        // Whom the OOM killer has struck may take long to end: its memory has to be given back first.
        if one_died || self.budget.group().oom_kills() > 0 {
            return self.lost().await;
        }
        self.lose(Loss::Agent("its connection ended while the VM went on".into()));
        self.kill();
        self.lost().await
    }

    /// Ends a boot that is under way, at its next step if nothing of it runs yet.
    pub fn abort_boot(self: &Arc<Self>) {
        {
            let mut live = self.live();
            (live.stopping, live.aborted) = (true, true);
        }
        self.kill();
    }

    /// A VMM that ended before it ran a guest, by itself or because the host had no memory for it.
    pub(super) fn vmm_failed(&self, error: HypervisorError) -> SandboxError {
        match error {
            HypervisorError::Boot(end) if self.budget.group().oom_kills() > 0 => {
                self.boot_failed(&Loss::HostOom(end.to_string()))
            }
            error => VmError::Boot(error).into(),
        }
    }

    pub(super) fn check_aborted(&self) -> Result<(), SandboxError> {
        if self.live().stopping { Err(SandboxError::Aborted) } else { Ok(()) }
    }

    /// Lets VMM and proxy be killed, without waiting for it.
    pub fn kill(self: &Arc<Self>) {
        let (vm, proxy) = self.processes();
        let sandbox = self.clone();
        tokio::spawn(async move { sandbox.end_processes(vm.as_ref(), proxy.as_deref()).await });
    }

    /// The same to a guest that is of no use any more; `loss` is what all that is in it ends of.
    pub fn give_up(self: &Arc<Self>, loss: Loss) {
        self.lose(loss);
        self.kill();
    }

    /// The first word on how the sandbox was lost is the one that counts.
    fn lose(&self, loss: Loss) {
        self.loss.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(loss);
            first
        });
    }

    pub(super) fn processes(&self) -> (Option<Vm>, Option<Arc<Child>>) {
        let live = self.live();
        (live.vm.clone(), live.proxy.clone())
    }

    async fn end_processes(&self, vm: Option<&Vm>, proxy: Option<&Child>) {
        if let Err(error) = self.steps.enter(Step::StopVmm) {
            tracing::warn!(%error, "stop the VMM");
        }
        if let Some(Err(error)) = proxy.map(Child::kill) {
            tracing::debug!(%error, "kill the proxy");
        }
        if let Some(vm) = vm
            && let Err(error) = vm.stop().await
        {
            tracing::warn!(%error, "stop the VMM");
        }
        if let Some(proxy) = proxy
            && let Err(error) = process::exit(proxy).await
        {
            tracing::warn!(%error, "wait for the proxy");
        }
    }

    /// Has the guest end what is left in it and write its caches back. A guest that is gone or hangs is passed over.
    pub async fn quiesce(&self) {
        let Ok(agent) = self.agent() else { return };
        tokio::select! {
            done = agent.shutdown() => if let Err(error) = done {
                tracing::warn!(%error, "guest did not shut down in order");
            },
            _ = self.lost() => {}
        }
    }

    /// Ends VMM and proxy, and returns when they are dead. Idempotent.
    pub async fn stop(&self) {
        {
            let mut live = self.live();
            live.stopping = true;
            live.agent = None;
        }
        let (vm, proxy) = self.processes();
        if timeout(DEATH, self.end_processes(vm.as_ref(), proxy.as_deref())).await.is_err() {
            tracing::error!("VMM or proxy survives SIGKILL: it is stuck in the host's kernel");
        }
        self.lose(Loss::Stopped);
    }

    /// Whether somebody wanted the boot to end, which therefore failed.
    pub fn was_aborted(&self) -> bool {
        self.live().aborted
    }

    /// Whether the guest has come up, whatever became of it then.
    pub fn came_up(&self) -> bool {
        self.live().came_up
    }

    /// How the sandbox was lost, unless it was stopped.
    pub fn loss(&self) -> Option<Loss> {
        self.loss.borrow().clone().filter(|loss| *loss != Loss::Stopped)
    }

    /// The step that a boot failed at.
    pub fn failed_at(&self) -> Option<Step> {
        self.live().failed_at
    }

    /// The last that the guest's kernel has written to its console: lines of harmless characters, at most 4 KiB.
    pub fn last_words(&self) -> Option<String> {
        let tail = self.live().vm.as_ref()?.console_tail();
        let plain = |c: char| c == '\n' || !c.is_control();
        let text: String = tail.chars().filter(|c| plain(*c)).collect();
        let start = text.ceil_char_boundary(text.len().saturating_sub(LAST_WORDS));
        let text = text[start..].trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}
