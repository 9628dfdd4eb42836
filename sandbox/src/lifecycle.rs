//! One sandbox: from its directory to the moment when nothing of it is left.
//!
//! ```text
//! prepare ──► prepared ── boot ─► running ── loss, or stop ─► lost ── tear_down ─► gone
//!                └────────── boot failed, or stop ─────────────┘
//! ```
//!
//! *Prepared*: ledger, control groups, shared tree. *Running*: proxy and VMM besides, and an agent that has answered.
//! *Lost*: VMM and proxy are both dead, whatever began it; [`Loss`] says what did. A sandbox is lost once; it is
//! never booted again.
//!
//! One task, [`Sandbox::watch`], sees VMM and proxy die, decides on the loss and kills the other. Nobody else
//! decides it. Lock order: none is held while another is taken.

mod links;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kata_hypervisor::Hypervisor;
use kata_protocol::{agent, hello::HelloError};
use kata_spec::Limits;
use kata_sys::spawn::Child;
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use crate::{
    agent::{Agent, AgentError},
    budget::Budget,
    cgroup::{self, CgroupError, Group},
    clock,
    guest::{AgentConnection, Switchboard},
    layers::{Layers, LayersError},
    ledger::{self, Entry, Ledger, LedgerError},
    loss::{self, Loss},
    network::{Namespace, NetworkError, guard::Claim},
    process::{self, pid_number},
    proxy::{self, ProxyError, ProxyPlan},
    random,
    share::{ShareError, SharedTree},
    step::{InjectedFault, Step, Steps},
    vm::{self, Vm, VmError, VmSettings},
};

/// A VMM and a proxy that lose each other end one after the other; so long the news of the second may take.
const AFTERMATH: Duration = Duration::from_millis(400);

/// The agent's connection ends with either of them: a moment longer, so that they are heard first.
const AGENT_AFTERMATH: Duration = Duration::from_millis(700);

/// A killed process is gone within milliseconds, unless the host's kernel holds it.
const DEATH: Duration = Duration::from_secs(5);

/// Why a sandbox could not be made, booted or taken down.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SandboxError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Layers(#[from] LayersError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("get random bytes")]
    Random(#[source] io::Error),
    #[error("network task panicked")]
    NetworkTask,
    #[error("the VM did not come up: {why} (kernel {kernel}, initrd {initrd})")]
    BootFailed { why: String, kernel: PathBuf, initrd: PathBuf },
    #[error("the VM did not come up within {} s (console: {console})", limit.as_secs())]
    BootTimeout { limit: Duration, console: String },
    #[error("the sandbox is not running")]
    NotRunning,
    #[error("killed while the VM booted")]
    Aborted,
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

/// What a sandbox is made from.
#[derive(Debug)]
pub struct Settings {
    /// Sandbox directory.
    pub directory: PathBuf,
    /// The same, open.
    pub directory_fd: OwnedFd,
    /// Host name of the guest.
    pub hostname: String,
    /// Host path of `kata-proxy`.
    pub proxy: PathBuf,
    /// The first container; none when it only stands for the sandbox, and nothing of it runs.
    pub container_id: Option<String>,
    /// Its control group, planned.
    pub group: Group,
    /// What was asked for it.
    pub limits: Limits,
    /// That of VMM and proxy, planned.
    pub vm_group: Group,
    /// Pid of the monitor that goes into the container's group.
    pub monitor: u32,
    /// The VM.
    pub vm: VmSettings,
}

/// What is booted with.
#[derive(Debug)]
pub struct Boot {
    /// Namespace whose links the guest takes over.
    pub network: Option<Namespace>,
    /// The first container, if one is to be started at once.
    pub first: Option<agent::CreateContainerRequest>,
}

/// What is worth recording of a running sandbox.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Pid of the VMM.
    pub vmm_pid: Option<u32>,
    /// Pid of the proxy.
    pub proxy_pid: Option<u32>,
    /// What was chosen, and why.
    pub notes: BTreeMap<String, String>,
}

/// The live parts, as far as there are any.
#[derive(Default)]
struct Live {
    agent: Option<Agent>,
    vm: Option<Vm>,
    proxy: Option<Arc<Child>>,
    facts: Facts,
    stopping: bool,
    /// Locks on what the roots are made of.
    layers: Vec<OwnedFd>,
    /// On the network namespace.
    claim: Option<Arc<Claim>>,
    /// Keeps the guest's network at the namespace's.
    follower: Option<tokio::task::JoinHandle<()>>,
}

/// One sandbox.
pub struct Sandbox {
    settings: Settings,
    budget: Budget,
    steps: Arc<Steps>,
    ledger: Arc<Ledger>,
    network_note: watch::Sender<String>,
    tree: SharedTree,
    board: Arc<Switchboard>,
    nonce: [u8; 32],
    agent_waiting: Mutex<Option<tokio::sync::oneshot::Receiver<AgentConnection>>>,
    live: Mutex<Live>,
    loss: watch::Sender<Option<Loss>>,
}

impl Sandbox {
    /// Makes everything that a VM will need and that costs nothing while there is none.
    ///
    /// # Errors
    /// [`SandboxError`]; [`ledger::replay`] undoes what was made.
    pub fn prepare(settings: Settings) -> Result<Arc<Self>, SandboxError> {
        let steps = Arc::new(Steps::from_environment());
        let ledger = Ledger::open(&settings.directory_fd)?;
        let groups = [&settings.group, &settings.vm_group];
        for cgroup::Missing { path, own } in groups.iter().flat_map(|group| group.missing()) {
            let entry = if own { Entry::Cgroup { path } } else { Entry::CgroupParent { path } };
            ledger.intend(&steps, &entry)?;
        }
        steps.enter(Step::MakeCgroup)?;
        groups.iter().try_for_each(|group| group.make())?;
        steps.enter(Step::LimitCgroup)?;
        settings.group.limit(&settings.limits)?;
        let budget = Budget::new(
            settings.vm_group.clone(),
            settings.vm.memory,
            settings.vm.accelerator.accelerator,
        );
        match &settings.container_id {
            Some(id) => budget.admit(id, &settings.limits)?,
            None => budget.bound()?,
        }
        settings.group.enter(settings.monitor)?;
        let tree = SharedTree::mount(&settings.directory.join("shared"), &steps)?;
        let nonce = random::bytes().map_err(SandboxError::Random)?;
        let (board, agent_waiting) = Switchboard::new(nonce);
        Ok(Arc::new(Self {
            settings,
            budget,
            steps,
            ledger: Arc::new(ledger),
            network_note: watch::Sender::new("loopback alone".into()),
            tree,
            board,
            nonce,
            agent_waiting: Mutex::new(Some(agent_waiting)),
            live: Mutex::default(),
            loss: watch::Sender::new(None),
        }))
    }

    /// Makes the group of one more container, and puts its monitor there.
    ///
    /// # Errors
    /// [`SandboxError`]; [`ledger::replay`] undoes what was made.
    pub fn add_member(
        &self,
        id: &str,
        (group, limits): (&Group, &Limits),
        monitor: u32,
    ) -> Result<(), SandboxError> {
        for cgroup::Missing { path, own } in group.missing() {
            let entry = if own { Entry::Cgroup { path } } else { Entry::CgroupParent { path } };
            self.ledger.intend(&self.steps, &entry)?;
        }
        self.steps.enter(Step::MakeCgroup)?;
        group.make()?;
        self.steps.enter(Step::LimitCgroup)?;
        group.limit(limits)?;
        self.budget.admit(id, limits)?;
        Ok(group.enter(monitor)?)
    }

    /// Removes the group of such a container.
    ///
    /// # Errors
    /// [`SandboxError::Cgroup`].
    pub fn remove_member(&self, id: &str, group: &Group) -> Result<(), SandboxError> {
        self.budget.release(id)?;
        Ok(group.remove()?)
    }

    /// The tree that the guest will see.
    pub fn tree(&self) -> &SharedTree {
        &self.tree
    }

    /// Makes a container's root of an image's layers; they stay in use for as long as the sandbox lives.
    ///
    /// # Errors
    /// [`SandboxError`]; [`ledger::replay`] undoes what was made.
    pub fn attach_layers(&self, id: &str, layers: &Layers) -> Result<(), SandboxError> {
        let locks = layers.attach(id, &self.tree, (&self.ledger, &self.steps))?;
        self.live().layers.extend(locks);
        Ok(())
    }

    /// The control group of the first container.
    pub fn group(&self) -> &Group {
        &self.settings.group
    }

    /// What VMM and proxy may take of the host.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Processors that the guest can bring up.
    pub fn max_vcpus(&self) -> u32 {
        self.settings.vm.max_vcpus.get().into()
    }

    /// The seam.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Where streams arrive.
    pub fn switchboard(&self) -> &Switchboard {
        &self.board
    }

    /// The agent of a running sandbox.
    ///
    /// # Errors
    /// [`SandboxError::NotRunning`].
    pub fn agent(&self) -> Result<Agent, SandboxError> {
        self.live().agent.clone().ok_or(SandboxError::NotRunning)
    }

    /// What is worth recording.
    pub fn facts(&self) -> Facts {
        let mut facts = self.live().facts.clone();
        facts.notes.insert("network".into(), self.network_note.borrow().clone());
        facts
    }

    /// Boots the VM, with its first container if there is one.
    ///
    /// # Errors
    /// [`SandboxError`]; the sandbox is lost then.
    pub async fn boot(self: &Arc<Self>, boot: Boot) -> Result<(), SandboxError> {
        let booted = self.try_boot(boot).await;
        if booted.is_err() {
            self.stop().await;
        }
        booted
    }

    async fn try_boot(self: &Arc<Self>, boot: Boot) -> Result<(), SandboxError> {
        let (mirror, attached) = self.attach_network(boot.network).await?;
        self.check_aborted()?;
        let plan = ProxyPlan {
            program: &self.settings.proxy,
            directory: &self.settings.directory_fd,
            shared_tree: self.tree.root(),
        };
        let (proxy, ends) = proxy::start(&plan, &self.steps)?;
        let proxy_pid = pid_number(&proxy.child);
        let proxy_child = Arc::new(proxy.child);
        self.live().proxy = Some(proxy_child.clone());
        self.settings.vm_group.enter(proxy_pid)?;
        let control = proxy.control;
        let sandbox = self.clone();
        tokio::spawn(self.board.clone().serve(control, move || sandbox.drop_guest_caches()));
        self.steps.enter(Step::BootVmm)?;
        let devices = vm::Devices { ends, nics: attached.nics };
        let (vm, notes) = vm::make(&self.settings.vm, &self.nonce, devices)?;
        self.live().vm = Some(vm.clone());
        vm.boot().await.map_err(VmError::Boot)?;
        self.check_aborted()?;
        {
            let mut live = self.live();
            let vmm_pid = vm.pid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
            live.facts = Facts { vmm_pid, proxy_pid: Some(proxy_pid), notes };
        }
        tokio::spawn(self.clone().watch(vm.clone(), proxy_child));
        let agent = self.await_agent(&vm).await?;
        self.start_sandbox(agent.clone(), attached.change, boot.first).await?;
        self.follow_network(mirror, agent);
        Ok(())
    }

    /// Waits for the agent's hello, or for evidence that none will come.
    async fn await_agent(self: &Arc<Self>, vm: &Vm) -> Result<Agent, SandboxError> {
        self.steps.enter(Step::AwaitAgent)?;
        let waiting = self.agent_waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let waiting = waiting.ok_or(SandboxError::NotRunning)?;
        let limit = self.settings.vm.boot_limit;
        let connection = tokio::select! {
            connection = waiting => connection.map_err(|_| SandboxError::NotRunning)??,
            loss = self.lost() => return Err(self.boot_failed(&loss)),
            () = tokio::time::sleep(limit) => {
                return Err(SandboxError::BootTimeout { limit, console: vm.console_tail() });
            }
        };
        Ok(Agent::new(connection, self.steps.clone()))
    }

    async fn start_sandbox(
        self: &Arc<Self>,
        agent: Agent,
        network: agent::NetworkChange,
        first: Option<agent::CreateContainerRequest>,
    ) -> Result<(), SandboxError> {
        self.steps.enter(Step::StartSandbox)?;
        let entropy = random::bytes::<64>().map_err(SandboxError::Random)?;
        self.live().agent = Some(agent.clone());
        let request = agent::StartSandboxRequest {
            hostname: self.settings.hostname.clone(),
            entropy: entropy.to_vec(),
            network: Some(network).into(),
            start: first.is_some(),
            first_container: first.into(),
            clock_unix_ns: clock::unix_nanoseconds(),
            ..Default::default()
        };
        let answer = tokio::select! {
            answer = agent.start_sandbox(&request) => answer,
            loss = self.lost() => return Err(self.boot_failed(&loss)),
        };
        match answer {
            Ok(_) => {
                tokio::spawn(clock::keep(self.clone()));
                Ok(())
            }
            Err(AgentError::Lost { .. }) => Err(self.boot_failed(&self.agent_lost().await)),
            Err(refused) => Err(refused.into()),
        }
    }

    fn boot_failed(&self, loss: &Loss) -> SandboxError {
        let VmSettings { kernel, initrd, .. } = &self.settings.vm;
        let (kernel, initrd) = (kernel.clone(), initrd.clone());
        SandboxError::BootFailed { why: loss.describe(), kernel, initrd }
    }

    fn drop_guest_caches(&self) {
        let Ok(agent) = self.agent() else { return };
        tokio::spawn(async move {
            if let Err(error) = agent.drop_caches(&agent::Empty::new()).await {
                tracing::warn!(%error, "ask the guest to drop cached inodes");
            }
        });
    }

    /// Sees VMM and proxy end, and says once and for all what began it.
    async fn watch(self: Arc<Self>, vm: Vm, proxy: Arc<Child>) {
        let vm_ended = vm.wait();
        let proxy_ended = process::exit(&proxy);
        tokio::pin!(vm_ended, proxy_ended);
        let loss = tokio::select! {
            vm = &mut vm_ended => {
                let proxy = timeout(AFTERMATH, &mut proxy_ended).await.ok();
                loss::decide(vm, proxy.as_ref())
            }
            proxy = &mut proxy_ended => match timeout(AFTERMATH, &mut vm_ended).await {
                Ok(vm) => loss::decide(vm, Some(&proxy)),
                Err(_) => loss::of_proxy(&proxy),
            },
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
        if vm.is_some_and(|vm| vm.pid().is_none()) || proxy.is_some_and(|proxy| dead(&proxy)) {
            return self.lost().await;
        }
        self.lose(Loss::Agent("its connection ended while the VM went on".into()));
        self.kill();
        self.lost().await
    }

    /// Ends a boot that is under way, at its next step if nothing of it runs yet.
    pub fn abort_boot(self: &Arc<Self>) {
        self.live().stopping = true;
        self.kill();
    }

    fn check_aborted(&self) -> Result<(), SandboxError> {
        if self.live().stopping { Err(SandboxError::Aborted) } else { Ok(()) }
    }

    /// Lets VMM and proxy be killed, without waiting for it.
    pub fn kill(self: &Arc<Self>) {
        let (vm, proxy) = self.processes();
        let sandbox = self.clone();
        tokio::spawn(async move { sandbox.end_processes(vm.as_ref(), proxy.as_deref()).await });
    }

    /// The first word on how the sandbox was lost is the one that counts.
    fn lose(&self, loss: Loss) {
        self.loss.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(loss);
            first
        });
    }

    fn processes(&self) -> (Option<Vm>, Option<Arc<Child>>) {
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

    /// Takes everything away that is not the sandbox directory itself.
    ///
    /// # Errors
    /// [`SandboxError`]; to be tried again.
    pub async fn tear_down(&self) -> Result<(), SandboxError> {
        self.stop().await;
        self.tree.unmount()?;
        // Replaying takes the claim itself, as whoever deletes without a shim has to.
        self.leave_network().await;
        let (directory, steps) = (self.settings.directory.clone(), self.steps.clone());
        let replay = tokio::task::spawn_blocking(move || ledger::replay(&directory, &steps)).await;
        replay.map_err(|_| SandboxError::NetworkTask)??;
        Ok(())
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
