//! The sandbox that this shim is responsible for, and the containers in it.
//!
//! The command line has one container in a sandbox; an engine may have many. The first that is created makes the
//! sandbox, and the sandbox is taken down with the container that holds it, or with the last.

mod forsaken;
mod place;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use kata_config::{ConfigError, Loaded};
use kata_engine_api::{
    handover::{FailureKind, TerminalSize},
    record::{Record, Status},
    timestamp::rfc3339,
};
use kata_protocol::ROOTS;
use kata_sandbox::{
    cgroup::Group,
    layers::Layers,
    ledger::Inmates,
    lifecycle::{Common, Sandbox},
    network::Namespace,
    share,
};
use kata_spec::{Checked, Trees};
use kata_sys::causes::chain;
use rustix::fs::{Mode, OFlags};
use tokio::sync::Notify;

use crate::{
    container::{Container, Parts, Role},
    engine::{pod, stdio::Names},
    failure::Refusal,
    monitor::Monitor,
    offline,
    process::Process,
    sizing::{self, MEMORY_NOTE},
    volumes::Volumes,
};

/// A container to be made, with everything that only its creator could see.
pub struct Creation {
    /// Its id, checked.
    pub id: String,
    /// What it is to the sandbox.
    pub role: Role,
    /// Its configuration, checked.
    pub spec: Checked,
    /// Root file system and volumes; none for a container that never runs in the guest.
    pub trees: Option<Trees>,
    /// The root is made of these, and not of the tree.
    pub layers: Option<Layers>,
    /// Namespace whose links the guest takes over.
    pub network: Option<Namespace>,
    /// The process that stands for it on the host.
    pub monitor: Monitor,
    /// It has a terminal, perhaps of a known size.
    pub terminal: Option<Option<TerminalSize>>,
    /// It is in the pod's own pid namespace.
    pub shares_pids: bool,
    /// Its shared memory is the pod's.
    pub shares_memory: bool,
    /// Its stdio, as the engine named it.
    pub names: Names,
    /// Where its record is.
    pub directory: Arc<OwnedFd>,
}

/// What is there now.
#[derive(Default)]
struct Pod {
    sandbox: Option<Arc<Sandbox>>,
    /// Network namespace of all monitors.
    network: Option<Arc<OwnedFd>>,
    /// Host path of the shared memory that the pod was given.
    shared_memory: Option<PathBuf>,
    /// By id.
    containers: HashMap<String, Slot>,
}

/// The slot of a container that is to be made.
pub struct Reservation(Arc<str>);

/// What has an id.
enum Slot {
    /// Whoever gives it up may come late, so it goes by whose slot it is.
    Held(Arc<str>),
    Taken(Arc<Container>),
}

impl Slot {
    fn container(&self) -> Option<&Arc<Container>> {
        match self {
            Self::Held(_) => None,
            Self::Taken(container) => Some(container),
        }
    }
}

/// What this shim serves.
pub struct Service {
    directory: PathBuf,
    directory_fd: Arc<OwnedFd>,
    /// As it was when the shim started; a mistake in it fails the create, where somebody hears of it.
    configuration: Result<Loaded, ConfigError>,
    pod: Mutex<Pod>,
    volumes: Volumes,
    /// One at a time: who makes or takes down the sandbox.
    changing: tokio::sync::Mutex<()>,
    /// What the ledger names could not be taken away.
    ledger_owed: AtomicBool,
    finished: Notify,
    /// The command line's container did not come to be.
    unmade: Notify,
}

impl Service {
    pub fn new(
        directory: PathBuf,
        directory_fd: Arc<OwnedFd>,
        configuration: Result<Loaded, ConfigError>,
    ) -> Arc<Self> {
        Arc::new(Self {
            directory,
            directory_fd,
            configuration,
            pod: Mutex::default(),
            volumes: Volumes::default(),
            changing: tokio::sync::Mutex::default(),
            ledger_owed: AtomicBool::new(false),
            finished: Notify::new(),
            unmade: Notify::new(),
        })
    }

    /// Sandbox directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The same, open.
    pub fn directory_fd(&self) -> &Arc<OwnedFd> {
        &self.directory_fd
    }

    /// The container with this id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Refusal> {
        let container = self.pod().containers.get(id).and_then(Slot::container).cloned();
        container.ok_or_else(|| Refusal::not_found(&format!("container {id:?} does not exist")))
    }

    /// Every container.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.pod().containers.values().filter_map(Slot::container).cloned().collect()
    }

    /// Makes a container, and the sandbox if there is none yet. A failure leaves nothing.
    pub async fn create(&self, creation: Creation) -> Result<Arc<Container>, Refusal> {
        self.reserve(&creation.id)?;
        self.create_reserved(creation).await
    }

    /// Holds the slot of a container that is to be made: as long as it does, the sandbox and the shim stay.
    pub fn reserve(&self, id: &str) -> Result<Reservation, Refusal> {
        match self.pod().containers.entry(id.to_owned()) {
            Entry::Vacant(slot) => {
                let holder = Arc::from(id);
                slot.insert(Slot::Held(Arc::clone(&holder)));
                Ok(Reservation(holder))
            }
            Entry::Occupied(_) => Err(exists(id)),
        }
    }

    /// Gives a slot up, if it still is held; with the sandbox, if everything else has left that meanwhile.
    pub async fn release(&self, Reservation(holder): Reservation) {
        let _only_one = self.changing.lock().await;
        let is_held = match self.pod().containers.get(&*holder) {
            Some(Slot::Held(held)) => Arc::ptr_eq(held, &holder),
            Some(Slot::Taken(_)) | None => false,
        };
        if !is_held {
            return;
        }
        if self.sandbox().is_some() {
            self.unmake(&holder, Role::Member);
        } else {
            self.pod().containers.remove(&*holder);
        }
    }

    /// Makes a container whose slot is held, and gives that up if it fails.
    pub async fn create_reserved(&self, creation: Creation) -> Result<Arc<Container>, Refusal> {
        let (id, role) = (creation.id.clone(), creation.role);
        let _only_one = self.changing.lock().await;
        let alone = role == Role::Alone && self.pod().containers.len() > 1;
        let made = if alone { Err(exists(&id)) } else { self.make(creation).await };
        match &made {
            Ok(container) => {
                self.pod().containers.insert(id, Slot::Taken(container.clone()));
            }
            Err(_) => self.unmake(&id, role),
        }
        made
    }

    /// Undoes a failed create; with the sandbox, when nothing else is in it.
    fn unmake(&self, id: &str, role: Role) {
        {
            let mut pod = self.pod();
            pod.containers.remove(id);
            if !pod.containers.is_empty() {
                return;
            }
            pod.network = None;
        }
        self.undo();
        match role {
            // Its creator ends the shim, if it still lives.
            Role::Alone => self.unmade.notify_one(),
            Role::Pod | Role::Member => self.finished.notify_one(),
        }
    }

    async fn make(&self, creation: Creation) -> Result<Arc<Container>, Refusal> {
        let loaded = self.configure(&creation.spec)?;
        // Now, for the sandbox lets go of mounts that it has no use for. Engines may have none.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let bundle = rustix::fs::open(&creation.spec.bundle, flags, Mode::empty()).ok();
        let (id, role) = (creation.id.clone(), creation.role);
        let (sandbox, group) = self.find_place(&creation, &loaded).await?;
        let grace = loaded.config.runtime.output_grace;
        let made = self.furnish(creation, (&sandbox, &group), (bundle, grace)).await;
        if let (Err(_), Role::Member) = (&made, role) {
            if let Err(error) = sandbox.tree().detach(&id) {
                tracing::warn!(%error, id, "take back the files of a container that could not be made");
            }
            if let Err(error) = sandbox.remove_member(&id, &group).await {
                tracing::warn!(%error, id, "take back a container that could not be made");
            }
        }
        made
    }

    /// Puts what a container is made of into its sandbox.
    async fn furnish(
        &self,
        creation: Creation,
        (sandbox, group): (&Arc<Sandbox>, &Group),
        (bundle, grace): (Option<OwnedFd>, Duration),
    ) -> Result<Arc<Container>, Refusal> {
        let Creation { id, role, spec, trees, network, monitor, terminal, .. } = creation;
        let runs = (role != Role::Pod).then_some(&id[..]);
        sandbox.rank(runs, monitor.pid, spec.process.oom_score_adj());
        if let Some(trees) = &trees {
            match &creation.layers {
                Some(layers) => sandbox.attach_layers(&id, layers)?,
                None => {
                    let root = sandbox.tree().attach_root(&id, &trees.root, sandbox.steps());
                    root.map_err(|e| Refusal::internal(&e))?;
                }
            }
        }
        let resolv_conf = trees.as_ref().and_then(|trees| resolv_conf(&spec, trees)).transpose();
        let placed = self.volumes.place(sandbox, trees.as_ref(), (&id, role, &spec)).await?;
        let place = |number: usize| placed.sources.get(number).cloned().unwrap_or_default();
        let guest_spec = spec.guest_spec(place);
        let common = match role {
            Role::Pod => pod::common(&guest_spec),
            Role::Alone | Role::Member => Common::default(),
        };
        let mut record = first_record(&id, &spec, monitor.pid);
        if role == Role::Member {
            let note = sizing::excess_note(&spec.limits, sandbox.budget().memory());
            record.sandbox.extend(note.map(|note| (MEMORY_NOTE.to_owned(), note)));
        }
        Container::create(Parts {
            role,
            sandbox: sandbox.clone(),
            bundle,
            group: group.clone(),
            limits: spec.limits.clone(),
            disks: spec.disks.clone(),
            directory: creation.directory,
            init: Arc::new(Process::new(&id, "", monitor, terminal).named(creation.names)),
            shares_pids: creation.shares_pids,
            grace,
            spec: match creation.shares_memory {
                true => pod::with_shared_memory(&guest_spec),
                false => guest_spec,
            },
            common,
            copies: placed.copies,
            memory: placed.memory,
            guest_root: format!("{}/{id}", ROOTS.1),
            network,
            resolv_conf: resolv_conf.map_err(|e| Refusal::internal(&e))?,
            record,
        })
    }

    /// The sandbox, once a container has made it.
    pub fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.pod().sandbox.clone()
    }

    /// The network namespace that the sandbox's containers are in on the host.
    pub fn network(&self) -> Option<Arc<OwnedFd>> {
        self.pod().network.clone()
    }

    /// Host path of the shared memory that the pod was given.
    pub fn shared_memory(&self) -> Option<PathBuf> {
        self.pod().shared_memory.clone()
    }

    /// Says by which host path containers are to share the pod's memory.
    pub fn keep_shared_memory(&self, path: Option<PathBuf>) {
        self.pod().shared_memory = path;
    }

    /// Says which network namespace further monitors are to join.
    pub fn keep_network(&self, namespace: Arc<OwnedFd>) {
        self.pod().network = Some(namespace);
    }

    fn pod(&self) -> MutexGuard<'_, Pod> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration, with what the spec's annotations say.
    fn configure(&self, spec: &Checked) -> Result<Loaded, Refusal> {
        let invalid = |e: &ConfigError| Refusal::new(FailureKind::InvalidArgument, chain(e));
        let mut loaded = self.configuration.as_ref().map_err(invalid)?.clone();
        let annotations = spec.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for warning in loaded.annotate(annotations).map_err(|e| invalid(&e))? {
            tracing::warn!(warning, "annotation");
        }
        Ok(loaded)
    }

    /// Takes a stopped container away, and everything that was made for it; with the last one, or with the one that
    /// holds it, the sandbox.
    pub async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let _only_one = self.changing.lock().await;
        let container = self.container(id)?;
        if container.record().status != Status::Stopped {
            return Err(Refusal::precondition(format!("container {id:?} is not stopped")));
        }
        let last = self.pod().containers.len() == 1;
        if last || container.role() != Role::Member {
            let torn_down = container.sandbox().tear_down(Inmates::Kill).await;
            self.ledger_owed.store(torn_down.is_err(), Ordering::Relaxed);
            torn_down?;
        } else {
            container.leave().await?;
        }
        container.hear_the_last().await;
        container.forget_all().await;
        if container.role() == Role::Alone {
            self.remove_directory()?;
        }
        // Last, so that what fails can be tried again.
        self.pod().containers.remove(id);
        Ok(())
    }

    /// The same for the command line's, which is all that this shim serves.
    pub async fn delete_and_finish(&self, id: &str) -> Result<(), Refusal> {
        self.delete(id).await?;
        self.finish();
        Ok(())
    }

    /// Whether a container was ever created, and not deleted since.
    pub fn has_container(&self) -> bool {
        !self.pod().containers.is_empty()
    }

    /// Whether the sandbox is gone from the host, as it is with the container that holds it, or was never made.
    pub fn is_torn_down(&self) -> bool {
        let is_member = |container: &Arc<Container>| container.role() == Role::Member;
        !self.ledger_is_owed() && self.containers().iter().all(is_member)
    }

    fn ledger_is_owed(&self) -> bool {
        self.ledger_owed.load(Ordering::Relaxed)
    }

    /// Takes away the directory of a sandbox that has nothing in it. What a create that failed has attached to the shared tree
    /// are the user's own files: without the tree they are out of reach.
    pub fn remove_directory(&self) -> Result<(), Refusal> {
        if !self.is_in_place() {
            return Ok(());
        }
        share::unmount_at(&self.directory.join(share::DIRECTORY))
            .map_err(|e| Refusal::internal(&e))?;
        offline::remove(&self.directory).map_err(|e| {
            let message = format!("remove {}: {e}", self.directory.display());
            Refusal::new(FailureKind::Internal, message)
        })
    }

    /// Ends the shim.
    pub fn finish(&self) {
        self.finished.notify_one();
    }

    /// Waits until there is nothing left to serve.
    pub async fn finished(&self) {
        self.finished.notified().await;
    }
}

fn exists(id: &str) -> Refusal {
    Refusal::new(FailureKind::AlreadyExists, format!("container {id:?} exists already"))
}

/// The file that is mounted on the container's `/etc/resolv.conf`.
fn resolv_conf(spec: &Checked, trees: &Trees) -> Option<io::Result<OwnedFd>> {
    let number = spec.volume_at(Path::new("/etc/resolv.conf"))?;
    trees.volumes.get(number).map(OwnedFd::try_clone)
}

/// A namespace of the monitor's own is found through the monitor, an engine's by the path that the engine gave it.
pub fn network_path(spec: &Checked, monitor: u32) -> PathBuf {
    match &spec.network {
        kata_spec::Network::Path(path) => path.clone(),
        _ => PathBuf::from(format!("/proc/{monitor}/ns/net")),
    }
}

fn first_record(id: &str, spec: &Checked, monitor: u32) -> Record {
    Record {
        oci_version: kata_spec::VERSION.to_owned(),
        id: id.to_owned(),
        status: Status::Created,
        pid: monitor,
        bundle: spec.bundle.to_string_lossy().into_owned(),
        rootfs: spec.rootfs.to_string_lossy().into_owned(),
        created: rfc3339(SystemTime::now()),
        owner_uid: rustix::process::getuid().as_raw(),
        annotations: spec.annotations.clone(),
        ended: None,
        shim_pid: std::process::id(),
        vmm_pid: None,
        proxy_pid: None,
        resources: serde_json::to_value(&spec.limits).unwrap_or_default(),
        sandbox: std::collections::BTreeMap::new(),
    }
}
