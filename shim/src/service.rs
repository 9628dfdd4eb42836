//! The sandbox that this shim is responsible for, and the containers in it.
//!
//! The command line has one container in a sandbox; an engine may have many. The first that is created makes the
//! sandbox, and the sandbox is taken down with the container that holds it, or with the last.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use kata_config::{Artefact, Config, ConfigError, Loaded, Machine, Prefix};
use kata_engine_api::{
    handover::{FailureKind, TerminalSize},
    record::{HOOKS_FILE, Record, Status},
    timestamp::rfc3339,
    words::chain,
};
use kata_hypervisor::{Accelerator, MachineType, MemoryMib, TscClock};
use kata_protocol::{COPIES, ROOTS, VOLUMES};
use kata_sandbox::{
    cgroup::Group,
    disk::DiskError,
    layers::Layers,
    lifecycle::{Common, Sandbox, Settings},
    network::Namespace,
    share,
    step::Steps,
    vm::VmSettings,
};
use kata_spec::{Checked, Trees};
use rustix::fs::{Mode, OFlags};
use tokio::sync::Notify;

use crate::{
    container::{Container, Parts, Role},
    copies::Copies,
    engine::{pod, stdio::Names},
    failure::Refusal,
    monitor::Monitor,
    mounts,
    process::Process,
    sizing::{self, Capacity, Purpose, Size},
    vmm,
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
    /// By id; `None` holds the place of one that is being made.
    containers: HashMap<String, Option<Arc<Container>>>,
}

/// What this shim serves.
pub struct Service {
    directory: PathBuf,
    directory_fd: Arc<OwnedFd>,
    /// As it was when the shim started; a mistake in it fails the create, where somebody hears of it.
    configuration: Result<Loaded, ConfigError>,
    pod: Mutex<Pod>,
    /// Numbers are never used twice: the guest may remember what was there.
    volumes: AtomicUsize,
    /// Of volumes that change while they are used.
    copies: Arc<Copies>,
    /// One at a time: who makes or takes down the sandbox.
    changing: tokio::sync::Mutex<()>,
    finished: Notify,
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
            volumes: AtomicUsize::new(0),
            copies: Arc::default(),
            changing: tokio::sync::Mutex::default(),
            finished: Notify::new(),
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
        let container = self.pod().containers.get(id).cloned().flatten();
        container.ok_or_else(|| Refusal::not_found(&format!("container {id:?} does not exist")))
    }

    /// Every container.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.pod().containers.values().flatten().cloned().collect()
    }

    /// Makes a container, and the sandbox if there is none yet. A failure leaves nothing.
    pub async fn create(&self, creation: Creation) -> Result<Arc<Container>, Refusal> {
        let id = creation.id.clone();
        {
            let mut pod = self.pod();
            let alone = creation.role == Role::Alone && !pod.containers.is_empty();
            if alone || pod.containers.contains_key(&id) {
                let message = format!("container {id:?} exists already");
                return Err(Refusal::new(FailureKind::AlreadyExists, message));
            }
            pod.containers.insert(id.clone(), None);
        }
        let _only_one = self.changing.lock().await;
        let made = self.make(creation);
        match &made {
            Ok(container) => {
                self.pod().containers.insert(id, Some(container.clone()));
            }
            Err(_) => self.unmake(&id),
        }
        made
    }

    /// Undoes a failed create; with the sandbox, when nothing else is in it.
    fn unmake(&self, id: &str) {
        let mut pod = self.pod();
        pod.containers.remove(id);
        if !pod.containers.is_empty() {
            return;
        }
        pod.sandbox = None;
        pod.network = None;
        if let Err(error) = kata_sandbox::ledger::replay(&self.directory, &Steps::default()) {
            tracing::warn!(%error, "undo a failed create");
        }
        self.finished.notify_one();
    }

    fn make(&self, creation: Creation) -> Result<Arc<Container>, Refusal> {
        let Creation { id, role, spec, trees, network, monitor, terminal, .. } = creation;
        let loaded = self.configure(&spec)?;
        let config = &loaded.config;
        // Now, for the sandbox lets go of mounts that it has no use for. Engines may have none.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let bundle = rustix::fs::open(&spec.bundle, flags, Mode::empty()).ok();
        let (sandbox, group) = match self.sandbox() {
            Some(sandbox) => {
                if let Some(disk) = spec.disks.first() {
                    let late = DiskError::Late { serial: disk.serial() };
                    return Err(Refusal::new(FailureKind::Unimplemented, late.to_string()));
                }
                let group = Group::plan(spec.cgroups_path.as_deref(), &id);
                let group = group.map_err(|e| Refusal::internal(&e))?;
                let memory = sandbox.budget().memory();
                sizing::must_fit(&spec.limits, memory, Capacity::of_host())?;
                sandbox.add_member(&id, (&group, &spec.limits), monitor.pid)?;
                (sandbox, group)
            }
            None => {
                let place = (&id[..], role);
                let sandbox =
                    self.prepare(place, &spec, (&loaded, monitor.pid), network.as_ref())?;
                sandbox.attach_disks(&spec.disks)?;
                let group = sandbox.group().clone();
                (sandbox, group)
            }
        };
        let volumes = self.volumes.fetch_add(spec.volumes.len(), Ordering::Relaxed);
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
        let copies = self.copies.share(&sandbox, trees.as_ref(), (role, &spec, volumes))?;
        let guest_spec = spec.guest_spec(|number| {
            let number = volumes + number;
            let is_copy = copies.iter().any(|copy| copy.number() == number);
            format!("{}/{number}", if is_copy { COPIES } else { VOLUMES.1 })
        });
        let common = match role {
            Role::Pod => pod::common(&guest_spec),
            Role::Alone | Role::Member => Common::default(),
        };
        let record = first_record(&id, &spec, monitor.pid);
        Container::create(Parts {
            role,
            sandbox,
            bundle,
            group,
            limits: spec.limits.clone(),
            disks: spec.disks.clone(),
            directory: creation.directory,
            init: Arc::new(Process::new(&id, "", monitor, terminal).named(creation.names)),
            shares_pids: creation.shares_pids,
            grace: config.runtime.output_grace,
            spec: match creation.shares_memory {
                true => pod::with_shared_memory(&guest_spec),
                false => guest_spec,
            },
            common,
            volumes: volumes..volumes + spec.volumes.len(),
            copies,
            guest_root: format!("{}/{id}", ROOTS.1),
            network,
            resolv_conf: resolv_conf.map_err(|e| Refusal::internal(&e))?,
            record,
        })
    }

    /// Makes the sandbox that the first container asks for.
    fn prepare(
        &self,
        place: (&str, Role),
        spec: &Checked,
        (loaded, monitor): (&Loaded, u32),
        network: Option<&Namespace>,
    ) -> Result<Arc<Sandbox>, Refusal> {
        let settings = self.settings(place, spec, (loaded, monitor))?;
        let mut needed = settings.vm.files();
        let prefix = Prefix::of_this_program().map_err(|e| Refusal::internal(&e))?;
        needed.push(prefix.find(Artefact::Monitor).map_err(|e| Refusal::internal(&e))?);
        needed.push(settings.proxy.clone());
        needed.extend(network.map(|network| network.path.clone()));
        let sandbox = Sandbox::prepare(settings).map_err(Refusal::from)?;
        self.pod().sandbox = Some(sandbox.clone());
        mounts::keep_only(&self.directory, &needed).map_err(|e| Refusal::internal(&e))?;
        Ok(sandbox)
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

    fn settings(
        &self,
        (id, role): (&str, Role),
        spec: &Checked,
        (loaded, monitor): (&Loaded, u32),
    ) -> Result<Settings, Refusal> {
        let internal = |e: &dyn std::error::Error| Refusal::internal(e);
        let prefix = Prefix::of_this_program().map_err(|e| internal(&e))?;
        let config = &loaded.config;
        let purpose = Purpose {
            limits: match role {
                Role::Pod => &sizing::pod_limits(&spec.annotations),
                Role::Alone | Role::Member => &spec.limits,
            },
            is_pod: role == Role::Pod,
            memory_is_set: loaded.is_set("vm.memory_mib"),
        };
        let size = sizing::size(config, purpose, Capacity::of_host())?;
        let group = Group::plan(spec.cgroups_path.as_deref(), id).map_err(|e| internal(&e))?;
        let vm_group = group.beside().map_err(|e| internal(&e))?;
        Ok(Settings {
            directory: self.directory.clone(),
            directory_fd: self.directory_fd.try_clone().map_err(|e| internal(&e))?,
            hostname: spec.hostname.clone().unwrap_or_default(),
            proxy: prefix.find(Artefact::Proxy).map_err(|e| internal(&e))?,
            container_id: (role == Role::Alone).then(|| id.to_owned()),
            limits: spec.limits.clone(),
            vm: vm_settings(config, &prefix, size, vm_group.procs())?,
            group,
            vm_group,
            monitor,
        })
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
            container.sandbox().tear_down().await?;
        } else {
            container.leave().await?;
        }
        self.pod().containers.remove(id);
        container.hear_the_last().await;
        if container.role() == Role::Alone {
            self.remove_directory()?;
            self.finished.notify_one();
        }
        Ok(())
    }

    /// Whether a container was ever created, and not deleted since.
    pub fn has_container(&self) -> bool {
        !self.pod().containers.is_empty()
    }

    /// Whether the sandbox is gone from the host, as it is with the container that holds it, or was never made.
    pub fn is_torn_down(&self) -> bool {
        self.containers().iter().all(|container| container.role() == Role::Member)
    }

    /// Takes away the directory of a sandbox that has nothing in it. What a create that failed has attached to the shared tree
    /// are the user's own files: without the tree they are out of reach.
    pub fn remove_directory(&self) -> Result<(), Refusal> {
        share::unmount_at(&self.directory.join(share::DIRECTORY))
            .map_err(|e| Refusal::internal(&e))?;
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let message = format!("remove {}: {e}", self.directory.display());
                Err(Refusal::new(FailureKind::Internal, message))
            }
            _ => Ok(()),
        }
    }

    /// Takes away the directory of a sandbox that never got a container.
    pub fn give_up(&self) {
        tracing::warn!("whoever started this shim is gone, and left no container");
        if self.directory.join(HOOKS_FILE).exists() {
            // Hooks have run that others have to follow: whoever deletes the container runs those.
            return;
        }
        if let Err(refusal) = self.remove_directory() {
            tracing::warn!(message = refusal.message, "give up");
        }
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

fn vm_settings(
    config: &Config,
    prefix: &Prefix,
    size: Size,
    cgroup_procs: Vec<PathBuf>,
) -> Result<VmSettings, Refusal> {
    let internal = |e: &dyn std::error::Error| Refusal::internal(e);
    let parts = vmm::Parts::find(config, prefix).map_err(|e| internal(&e))?;
    let accelerator = parts.choose(config).map_err(|e| internal(&e))?;
    let pages = vmm::pages(config);
    Ok(VmSettings {
        vmm: parts.vmm,
        launcher: parts.launcher,
        user: vmm::user(),
        cgroup_procs,
        kernel: parts.kernel,
        initrd: parts.initrd,
        memory: MemoryMib(size.memory.0.next_multiple_of(pages.granularity().0)),
        pages,
        vcpus: size.vcpus,
        max_vcpus: size.max_vcpus,
        notes: size.notes.into_iter().map(|(name, note)| (name.into(), note)).collect(),
        machine: match config.hypervisor.machine {
            Machine::Auto => None,
            Machine::Microvm => Some(MachineType::Microvm),
            Machine::Q35 => Some(MachineType::Q35),
        },
        spare_nics: config.network.spare_nics as usize,
        network_model: config.network.model,
        boot_limit: match accelerator.accelerator {
            Accelerator::Kvm => config.boot.timeout_kvm,
            Accelerator::Tcg => config.boot.timeout_tcg,
        },
        accelerator,
        tsc: Arc::new(TscClock::start()),
    })
}

fn first_record(id: &str, spec: &Checked, monitor: u32) -> Record {
    Record {
        oci_version: spec.oci_version.clone(),
        id: id.to_owned(),
        status: Status::Creating,
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
