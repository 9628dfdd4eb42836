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
//! decides it. Lock order: the turn to boot before `live`; besides none is held while another is taken.

mod ending;
mod links;
mod members;
mod proxied;
mod ranking;
mod silence;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kata_hypervisor::{Disk, Hypervisor};
use kata_protocol::{
    agent,
    hello::{HelloError, StreamToken},
};
use kata_spec::{HostDisk, Limits};
use kata_sys::spawn::Child;
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    agent::{Agent, AgentError},
    budget::Budget,
    cgroup::{self, CgroupError, Group},
    clock,
    disk::{self, DiskError},
    guest::{AgentConnection, Switchboard},
    layers::{Layers, LayersError},
    ledger::{Entry, Inmates, Ledger, LedgerError},
    loss::Loss,
    network::{Namespace, NetworkError, guard::Claim},
    process::pid_number,
    proxy::{self, ProxyError, ProxyPlan},
    random,
    share::{self, ShareError, SharedTree},
    step::{InjectedFault, Step, Steps},
    vm::{self, Vm, VmError, VmSettings},
};

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
    Disk(#[from] DiskError),
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
    #[error("what takes the sandbox away panicked")]
    ReplayPanicked,
    #[error("the VM did not come up: {why} (kernel {kernel}, initrd {initrd})")]
    BootFailed { why: String, kernel: PathBuf, initrd: PathBuf },
    #[error("the VM did not come up within {} s (console: {console})", limit.as_secs())]
    BootTimeout { limit: Duration, console: String },
    #[error("the sandbox is not running")]
    NotRunning,
    #[error("the sandbox is not running: {}", .0.describe())]
    Lost(Loss),
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
    /// What its containers have in common.
    pub common: Common,
    /// They ask docker's resolver: the token of the stream of their questions.
    pub resolver: Option<StreamToken>,
}

/// What containers of a sandbox have in common.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// Kernel parameters of the namespaces that they share.
    pub sysctls: HashMap<String, String>,
    /// Those of the host's namespace, for which nobody has asked.
    pub inherited_sysctls: HashMap<String, String>,
    /// Size of their shared memory; 0 leaves it to the guest's kernel.
    pub shm_bytes: u64,
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
    /// Somebody wanted the boot to end.
    aborted: bool,
    /// The step that the boot ended at.
    failed_at: Option<Step>,
    /// The agent has greeted.
    came_up: bool,
    /// Locks on what the roots are made of.
    layers: Vec<OwnedFd>,
    /// Block devices of the host, until the VM has them.
    disks: Vec<Disk>,
    /// On the network namespace.
    claim: Option<Arc<Claim>>,
    /// Listeners of the namespace's localhost, until somebody takes them.
    localhost: Vec<OwnedFd>,
    /// Keeps the guest's network at the namespace's.
    follower: Option<tokio::task::JoinHandle<()>>,
}

/// Who has it may boot the VM.
pub struct Turn<'a>(tokio::sync::MutexGuard<'a, bool>);

/// One sandbox.
pub struct Sandbox {
    settings: Settings,
    budget: Budget,
    ranks: ranking::Ranks,
    steps: Arc<Steps>,
    ledger: Arc<Ledger>,
    network_note: watch::Sender<String>,
    guest_note: watch::Sender<String>,
    tree: SharedTree,
    board: Arc<Switchboard>,
    nonce: [u8; 32],
    agent_waiting: Mutex<Option<tokio::sync::oneshot::Receiver<AgentConnection>>>,
    live: Mutex<Live>,
    /// A boot was begun, whatever became of it; held while it goes on.
    booting: tokio::sync::Mutex<bool>,
    loss: watch::Sender<Option<Loss>>,
}

impl Sandbox {
    /// Makes everything that a VM will need and that costs nothing while there is none.
    ///
    /// # Errors
    /// [`SandboxError`]; [`crate::ledger::replay`] undoes what was made.
    pub fn prepare(settings: Settings) -> Result<Arc<Self>, SandboxError> {
        let steps = Arc::new(Steps::from_environment());
        let ledger = Ledger::open(&settings.directory_fd)?;
        settings.group.must_be_free()?;
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
        let tree = SharedTree::mount(&settings.directory.join(share::DIRECTORY), &steps)?;
        let nonce = random::bytes().map_err(SandboxError::Random)?;
        let (board, agent_waiting) = Switchboard::new(nonce);
        Ok(Arc::new(Self {
            settings,
            budget,
            ranks: ranking::Ranks::default(),
            steps,
            ledger: Arc::new(ledger),
            network_note: watch::Sender::new("loopback alone".into()),
            guest_note: watch::Sender::new(silence::ANSWERS.into()),
            tree,
            board,
            nonce,
            agent_waiting: Mutex::new(Some(agent_waiting)),
            live: Mutex::default(),
            booting: tokio::sync::Mutex::default(),
            loss: watch::Sender::new(None),
        }))
    }

    /// The tree that the guest will see.
    pub fn tree(&self) -> &SharedTree {
        &self.tree
    }

    /// Makes a container's root of an image's layers; they stay in use for as long as the sandbox lives.
    ///
    /// # Errors
    /// [`SandboxError`]; [`Sandbox::undo`] undoes what was made.
    pub fn attach_layers(&self, id: &str, layers: &Layers) -> Result<(), SandboxError> {
        let locks = layers.attach(id, &self.tree, (&self.ledger, &self.steps))?;
        self.live().layers.extend(locks);
        Ok(())
    }

    /// Takes block devices of the host for the VM, which must not have booted.
    ///
    /// # Errors
    /// [`SandboxError::Disk`].
    pub fn attach_disks(&self, disks: &[HostDisk]) -> Result<(), SandboxError> {
        let taken = disks.iter().map(disk::take).collect::<Result<Vec<_>, _>>()?;
        self.live().disks.extend(taken);
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
    /// [`SandboxError::NotRunning`], [`SandboxError::Lost`].
    pub fn agent(&self) -> Result<Agent, SandboxError> {
        let agent = self.live().agent.clone();
        agent.ok_or_else(|| match &*self.loss.borrow() {
            None | Some(Loss::Stopped) => SandboxError::NotRunning,
            Some(loss) => SandboxError::Lost(loss.clone()),
        })
    }

    /// What is worth recording.
    pub fn facts(&self) -> Facts {
        let mut facts = self.live().facts.clone();
        facts.notes.insert("network".into(), self.network_note.borrow().clone());
        facts.notes.insert("guest".into(), self.guest_note.borrow().clone());
        facts
    }

    /// The turn to boot the VM, which is given once; whoever comes later waits for the end of that boot, and gets none.
    ///
    /// # Errors
    /// [`SandboxError::NotRunning`], [`SandboxError::Lost`] after the boot.
    pub async fn turn_to_boot(&self) -> Result<Option<Turn<'_>>, SandboxError> {
        let begun = self.booting.lock().await;
        if *begun { self.agent().map(|_| None) } else { Ok(Some(Turn(begun))) }
    }

    /// Boots the VM, with its first container if there is one.
    ///
    /// # Errors
    /// [`SandboxError`]; the sandbox is lost then.
    pub async fn boot(
        self: &Arc<Self>,
        mut turn: Turn<'_>,
        boot: Boot,
    ) -> Result<(), SandboxError> {
        *turn.0 = true;
        let booted = self.try_boot(boot).await;
        if booted.is_err() {
            let step = self.steps.last();
            self.live().failed_at = step;
            self.stop().await;
        }
        booted
    }

    async fn try_boot(self: &Arc<Self>, mut boot: Boot) -> Result<(), SandboxError> {
        let (mut mirror, mut attached, localhost) =
            self.attach_network(boot.network.take(), boot.resolver.is_some()).await?;
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
        // As the VMM's launcher does.
        self.rank_vm();
        self.settings.vm_group.enter(proxy_pid)?;
        self.hear_proxy(proxy.control);
        self.steps.enter(Step::BootVmm)?;
        let disks = std::mem::take(&mut self.live().disks);
        let devices = vm::Devices { ends, nics: attached.nics, disks };
        let (vm, notes) = vm::make(&self.settings.vm, &self.nonce, devices)?;
        self.live().vm = Some(vm.clone());
        vm.boot().await.map_err(|error| self.vmm_failed(error))?;
        self.check_aborted()?;
        {
            let mut live = self.live();
            let vmm_pid = vm.pid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
            live.facts = Facts { vmm_pid, proxy_pid: Some(proxy_pid), notes };
        }
        tokio::spawn(self.clone().watch(vm.clone(), proxy_child));
        // Meanwhile the guest comes up.
        self.open_localhost(localhost)?;
        let agent = self.await_agent(&vm).await?;
        self.live().came_up = true;
        tokio::spawn(self.clone().watch_silence(agent.clone(), vm.clone()));
        Self::pass_sysctls(mirror.as_mut(), &mut attached.change, &mut boot.common).await?;
        self.start_sandbox(agent.clone(), attached.change, boot).await?;
        self.rank_vm();
        self.follow_network(mirror, agent, vm);
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
        Ok(Agent::new(connection, self.steps.clone(), self.loss.subscribe()))
    }

    async fn start_sandbox(
        self: &Arc<Self>,
        agent: Agent,
        network: agent::NetworkChange,
        boot: Boot,
    ) -> Result<(), SandboxError> {
        self.steps.enter(Step::StartSandbox)?;
        let entropy = random::bytes::<64>().map_err(SandboxError::Random)?;
        self.live().agent = Some(agent.clone());
        let Boot { first, common, resolver, .. } = boot;
        let request = agent::StartSandboxRequest {
            hostname: self.settings.hostname.clone(),
            entropy: entropy.to_vec(),
            network: Some(network).into(),
            start: first.is_some(),
            first_container: first.into(),
            clock_unix_ns: clock::unix_nanoseconds(),
            sysctls: common.sysctls,
            inherited_sysctls: common.inherited_sysctls,
            shm_bytes: common.shm_bytes,
            resolver_token: resolver.map(Vec::from).unwrap_or_default(),
            ..Default::default()
        };
        let answer = tokio::select! {
            answer = agent.start_sandbox(&request) => answer,
            loss = self.lost() => return Err(self.boot_failed(&loss)),
        };
        match answer {
            Ok(started) => {
                if let Some(note) = links::left_out(&request, &started) {
                    self.live().facts.notes.insert("sysctlNote".into(), note);
                }
                tokio::spawn(clock::keep(self.clone()));
                Ok(())
            }
            Err(AgentError::Lost { .. } | AgentError::SandboxLost { .. }) => {
                Err(self.boot_failed(&self.agent_lost().await))
            }
            Err(refused) => Err(refused.into()),
        }
    }

    fn boot_failed(&self, loss: &Loss) -> SandboxError {
        let VmSettings { kernel, initrd, .. } = &self.settings.vm;
        let (kernel, initrd) = (kernel.clone(), initrd.clone());
        SandboxError::BootFailed { why: loss.describe(), kernel, initrd }
    }

    /// Undoes what was made for a creation that has failed.
    ///
    /// # Errors
    /// [`SandboxError::Ledger`].
    pub fn undo(&self) -> Result<(), SandboxError> {
        Ok(self.ledger.replay(&Steps::default(), Inmates::Kill)?)
    }

    /// Takes everything away that is not the sandbox directory itself.
    ///
    /// # Errors
    /// [`SandboxError`]; to be tried again.
    pub async fn tear_down(&self, inmates: Inmates) -> Result<(), SandboxError> {
        self.stop().await;
        // What a boot that is under way makes has to be in the ledger by the time that it is replayed.
        drop(self.booting.lock().await);
        self.stop().await;
        self.tree.unmount()?;
        // Replaying takes the claim itself, as whoever deletes without a shim has to.
        self.leave_network().await;
        let (ledger, steps) = (self.ledger.clone(), self.steps.clone());
        let replay = tokio::task::spawn_blocking(move || ledger.replay(&steps, inmates)).await;
        replay.map_err(|_| SandboxError::ReplayPanicked)??;
        Ok(())
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
