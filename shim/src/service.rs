//! The containers that this shim is responsible for. On the OCI command line, that is one.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use kata_config::{Artefact, Config, ConfigError, Loaded, Machine, Prefix, find_vmm};
use kata_engine_api::{
    handover::{Create, FailureKind, Layers},
    record::{HOOKS_FILE, Record, Status},
    timestamp::rfc3339,
};
use kata_hypervisor::{Accelerator, AcceleratorSetting, MachineType, TscClock};
use kata_protocol::{ROOTS, VOLUMES};
use kata_sandbox::{
    cgroup::Group,
    lifecycle::{Sandbox, Settings},
    network::Namespace,
    share::VolumeKind,
    step::Steps,
    vm::VmSettings,
};
use kata_spec::{Checked, check};
use tokio::sync::Notify;

use crate::{
    container::{Container, Parts},
    failure::Refusal,
    monitor::Monitor,
    mounts,
    process::Process,
    sizing::{self, Capacity, Size},
};

/// First of the user ids that VMMs run under. The shim's pid picks one: no two live shims have the same, and a VMM never
/// outlives its shim, so nothing has to be allocated, locked or given back.
const FIRST_VMM_USER: u32 = 2_000_000_000;

/// The descriptors that come with a [`Create`].
#[derive(Debug)]
pub struct Handed {
    /// Control socket of the monitor.
    pub control: OwnedFd,
    /// Text of `config.json`.
    pub config: Vec<u8>,
    /// The root file system.
    pub root: OwnedFd,
    /// The network namespace.
    pub network: Option<OwnedFd>,
    /// One tree for each volume.
    pub volumes: Vec<OwnedFd>,
}

/// What this shim serves.
pub struct Service {
    directory: PathBuf,
    directory_fd: Arc<OwnedFd>,
    /// As it was when the shim started; a mistake in it fails the create, where somebody hears of it.
    configuration: Result<Loaded, ConfigError>,
    container: Mutex<Option<Arc<Container>>>,
    deleting: tokio::sync::Mutex<()>,
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
            container: Mutex::default(),
            deleting: tokio::sync::Mutex::default(),
            finished: Notify::new(),
        })
    }

    /// The container with this id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Refusal> {
        let container = self.container.lock().unwrap_or_else(PoisonError::into_inner);
        match container.as_ref() {
            Some(container) if container.record().id == id => Ok(container.clone()),
            _ => Err(Refusal::not_found(&format!("container {id:?} does not exist"))),
        }
    }

    /// Makes the container, and the sandbox that it will run in. A failure leaves nothing.
    pub async fn create(&self, create: &Create, handed: Handed) -> Result<(), Refusal> {
        if self.container.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Err(Refusal::new(FailureKind::AlreadyExists, "this shim has its container"));
        }
        let made = self.make(create, handed);
        if let Err(refusal) = made {
            if let Err(error) = kata_sandbox::ledger::replay(&self.directory, &Steps::default()) {
                tracing::warn!(%error, "undo a failed create");
            }
            self.finished.notify_one();
            return Err(refusal);
        }
        made
    }

    fn make(&self, create: &Create, handed: Handed) -> Result<(), Refusal> {
        let invalid = |message: String| Refusal::new(FailureKind::InvalidArgument, message);
        let value = serde_json::from_slice(&handed.config).map_err(|e| invalid(e.to_string()))?;
        let spec = check(&value, create.bundle.as_ref())
            .map_err(|e| invalid(crate::failure::chain(&e)))?;
        let config = self.configure(&spec)?;
        let settings = self.settings(create, &spec, &config)?;
        let mut needed = settings.vm.files();
        needed.extend([settings.proxy.clone(), network_path(&spec, create.monitor_pid)]);
        let sandbox = Sandbox::prepare(settings).map_err(Refusal::from)?;
        attach_trees(&sandbox, create, &handed)?;
        let guest_spec = spec.guest_spec(|number| format!("{}/{number}", VOLUMES.1));
        let network = handed
            .network
            .map(|fd| Namespace { fd, path: network_path(&spec, create.monitor_pid) });
        let monitor =
            Monitor::new(handed.control, create.monitor_pid).map_err(|e| Refusal::internal(&e))?;
        let terminal = spec.process.terminal.then_some(create.terminal_size);
        let container = Container::create(Parts {
            sandbox,
            directory: self.directory_fd.clone(),
            init: Arc::new(Process::new(&create.id, "", monitor, terminal)),
            grace: config.runtime.output_grace,
            spec: guest_spec,
            guest_root: format!("{}/{}", ROOTS.1, create.id),
            network,
            record: first_record(create, &spec),
        })?;
        *self.container.lock().unwrap_or_else(PoisonError::into_inner) = Some(container);
        mounts::keep_only(&self.directory, &needed).map_err(|e| Refusal::internal(&e))
    }

    /// The configuration, with what the spec's annotations say.
    fn configure(&self, spec: &Checked) -> Result<Config, Refusal> {
        let invalid =
            |e: &ConfigError| Refusal::new(FailureKind::InvalidArgument, crate::failure::chain(e));
        let mut loaded = self.configuration.as_ref().map_err(invalid)?.clone();
        let annotations = spec.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        for warning in loaded.annotate(annotations).map_err(|e| invalid(&e))? {
            tracing::warn!(warning, "annotation");
        }
        Ok(loaded.config)
    }

    fn settings(
        &self,
        create: &Create,
        spec: &Checked,
        config: &Config,
    ) -> Result<Settings, Refusal> {
        let internal = |e: &dyn std::error::Error| Refusal::internal(e);
        let prefix = Prefix::of_this_program().map_err(|e| internal(&e))?;
        let size = sizing::size(config, &spec.limits, Capacity::of_host())?;
        let group =
            Group::plan(spec.cgroups_path.as_deref(), &create.id).map_err(|e| internal(&e))?;
        let vm_group = group.beside().map_err(|e| internal(&e))?;
        Ok(Settings {
            directory: self.directory.clone(),
            directory_fd: self.directory_fd.try_clone().map_err(|e| internal(&e))?,
            hostname: spec.hostname.clone().unwrap_or_default(),
            proxy: prefix.find(Artefact::Proxy).map_err(|e| internal(&e))?,
            limits: spec.limits.clone(),
            vm_limits: sizing::vm_limits(size.memory, std::iter::once(&spec.limits)),
            vm: vm_settings(config, &prefix, size, vm_group.procs())?,
            group,
            vm_group,
            monitor: create.monitor_pid,
        })
    }

    /// Takes the stopped container away, and everything that was made for it.
    pub async fn delete(&self, id: &str) -> Result<(), Refusal> {
        let _only_one = self.deleting.lock().await;
        let container = self.container(id)?;
        if container.record().status != Status::Stopped {
            return Err(Refusal::precondition(format!("container {id:?} is not stopped")));
        }
        container.sandbox().tear_down().await?;
        match std::fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("remove {}: {e}", self.directory.display());
                return Err(Refusal::new(FailureKind::Internal, message));
            }
            _ => {}
        }
        *self.container.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.finished.notify_one();
        Ok(())
    }

    /// Whether a container was ever created, and not deleted since.
    pub fn has_container(&self) -> bool {
        self.container.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes away the directory of a sandbox that never got a container.
    pub fn give_up(&self) {
        tracing::warn!("whoever started this shim is gone, and left no container");
        if self.directory.join(HOOKS_FILE).exists() {
            // Hooks have run that others have to follow: whoever deletes the container runs those.
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, "remove the sandbox directory");
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

fn attach_trees(sandbox: &Sandbox, create: &Create, handed: &Handed) -> Result<(), Refusal> {
    let internal = |e: &dyn std::error::Error| Refusal::internal(e);
    match &create.layers {
        Some(Layers { lower, writable }) => {
            let lower = lower.iter().map(PathBuf::from).collect();
            let layers = kata_sandbox::layers::Layers { lower, writable: writable.into() };
            sandbox.attach_layers(&create.id, &layers)?;
        }
        None => sandbox
            .tree()
            .attach_root(&create.id, &handed.root, sandbox.steps())
            .map_err(|e| internal(&e))?,
    }
    for (number, (volume, tree)) in create.volumes.iter().zip(&handed.volumes).enumerate() {
        let kind = if volume.directory { VolumeKind::Directory } else { VolumeKind::File };
        let tree = sandbox.tree().attach_volume(number, kind, tree, sandbox.steps());
        tree.map_err(|e| internal(&e))?;
    }
    Ok(())
}

/// A namespace of the monitor's own is found through the monitor, an engine's by the path that the engine gave it.
fn network_path(spec: &Checked, monitor: u32) -> PathBuf {
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
    let setting = match config.hypervisor.accelerator {
        kata_config::Accelerator::Auto => AcceleratorSetting::Auto,
        kata_config::Accelerator::Kvm => AcceleratorSetting::Kvm,
        kata_config::Accelerator::Tcg => AcceleratorSetting::Tcg,
    };
    let accelerator = setting.choose().map_err(|e| internal(&e))?;
    let shim = prefix.find(Artefact::Shim).map_err(|e| internal(&e))?;
    Ok(VmSettings {
        vmm: find_vmm(config).map_err(|e| internal(&e))?,
        launcher: vec![shim.to_string_lossy().into_owned(), "vmm-jail".into()],
        user: FIRST_VMM_USER + std::process::id(),
        cgroup_procs,
        kernel: prefix.kernel(config).map_err(|e| internal(&e))?,
        initrd: prefix.initrd(config).map_err(|e| internal(&e))?,
        memory: size.memory,
        vcpus: size.vcpus,
        max_vcpus: size.max_vcpus,
        notes: size.notes.into_iter().map(|(name, note)| (name.into(), note)).collect(),
        machine: match config.hypervisor.machine {
            Machine::Auto => None,
            Machine::Microvm => Some(MachineType::Microvm),
            Machine::Q35 => Some(MachineType::Q35),
        },
        boot_limit: match accelerator.accelerator {
            Accelerator::Kvm => config.boot.timeout_kvm,
            Accelerator::Tcg => config.boot.timeout_tcg,
        },
        accelerator,
        tsc: Arc::new(TscClock::start()),
    })
}

fn first_record(create: &Create, spec: &Checked) -> Record {
    Record {
        oci_version: spec.oci_version.clone(),
        id: create.id.clone(),
        status: Status::Creating,
        pid: create.monitor_pid,
        bundle: create.bundle.clone(),
        rootfs: spec.rootfs.to_string_lossy().into_owned(),
        created: rfc3339(SystemTime::now()),
        owner_uid: rustix::process::getuid().as_raw(),
        annotations: spec.annotations.clone(),
        ended: None,
        shim_pid: std::process::id(),
        vmm_pid: None,
        proxy_pid: None,
        sandbox: std::collections::BTreeMap::new(),
    }
}
