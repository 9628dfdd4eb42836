//! Where a container is to be: in the sandbox that is there, or in one that is made for it.

use std::{path::PathBuf, sync::Arc};

use kata_config::{Artefact, Config, Loaded, Machine, Prefix};
use kata_engine_api::handover::FailureKind;
use kata_hypervisor::{
    Accelerator, AcceleratorChoice, MachineType, MemoryMib, Pages, TscClock, Vhost,
};
use kata_sandbox::{
    cgroup::Group,
    disk::DiskError,
    layers::Layers,
    lifecycle::{Sandbox, Settings},
    network::{Namespace, Rate, Rates},
    vm::VmSettings,
};
use kata_spec::Checked;

use super::{Creation, Service};
use crate::{
    container::Role,
    failure::Refusal,
    mounts,
    sizing::{self, Capacity, Ceiling, Purpose, Size},
    vmm,
};

impl Service {
    /// The sandbox that a container is to be in, which the first one makes, and its control group.
    pub(super) async fn find_place(
        &self,
        creation: &Creation,
        loaded: &Loaded,
    ) -> Result<(Arc<Sandbox>, Group), Refusal> {
        let Creation { id, role, spec, network, monitor, .. } = creation;
        Ok(match self.sandbox() {
            Some(sandbox) => {
                if let Some(disk) = spec.disks.first() {
                    let late = DiskError::Late { serial: disk.serial() };
                    return Err(Refusal::new(FailureKind::Unimplemented, late.to_string()));
                }
                let group = Group::plan_member(spec.cgroups_path.as_deref(), id);
                let group = group.map_err(|e| Refusal::internal(&e))?;
                let budget = sandbox.budget();
                let told = (budget.memory(), budget.promised());
                sizing::must_fit(&spec.limits, told, Capacity::of_host())?;
                sandbox.add_member(id, (&group, &spec.limits), monitor.pid).await?;
                (sandbox, group)
            }
            None => {
                let place = (&id[..], *role);
                let from = (network.as_ref(), creation.layers.as_ref());
                let sandbox = self.prepare(place, spec, (loaded, monitor.pid), from)?;
                sandbox.attach_disks(&spec.disks)?;
                if let Some(network) = network {
                    sandbox.set_sysctls(network, &spec.sysctls())?;
                }
                let group = sandbox.group().clone();
                (sandbox, group)
            }
        })
    }

    /// Makes the sandbox that the first container asks for.
    fn prepare(
        &self,
        place: (&str, Role),
        spec: &Checked,
        (loaded, monitor): (&Loaded, u32),
        (network, layers): (Option<&Namespace>, Option<&Layers>),
    ) -> Result<Arc<Sandbox>, Refusal> {
        let (settings, promised) = self.settings(place, spec, (loaded, monitor))?;
        let mut needed = settings.vm.files();
        let prefix = Prefix::of_this_program().map_err(|e| Refusal::internal(&e))?;
        needed.push(prefix.find(Artefact::Monitor).map_err(|e| Refusal::internal(&e))?);
        needed.push(settings.proxy.clone());
        needed.extend(network.map(|network| network.path.clone()));
        // The store may be on a disk of its own.
        needed.extend(layers.iter().flat_map(|layers| layers.paths()).cloned());
        let sandbox = Sandbox::prepare(settings).map_err(Refusal::from)?;
        sandbox.budget().promise(promised);
        self.pod().sandbox = Some(sandbox.clone());
        mounts::keep_only(&self.directory, &needed).map_err(|e| Refusal::internal(&e))?;
        Ok(sandbox)
    }

    /// What the sandbox is made from, and what [`Size::promised`] says.
    fn settings(
        &self,
        (id, role): (&str, Role),
        spec: &Checked,
        (loaded, monitor): (&Loaded, u32),
    ) -> Result<(Settings, u64), Refusal> {
        let internal = |e: &dyn std::error::Error| Refusal::internal(e);
        let prefix = Prefix::of_this_program().map_err(|e| internal(&e))?;
        let config = &loaded.config;
        let parts = vmm::Parts::find(config, &prefix).map_err(|e| internal(&e))?;
        let accelerator = parts.choose(config).map_err(|e| internal(&e))?;
        let group = Group::plan(spec.cgroups_path.as_deref(), id).map_err(|e| internal(&e))?;
        // Huge pages are not counted by it.
        let ceiling = group.memory_ceiling().filter(|_| vmm::pages(config) == Pages::Normal);
        let ceiling = ceiling.map(|limit| Ceiling::new(limit, accelerator.accelerator));
        let purpose = Purpose {
            limits: match role {
                Role::Pod => &sizing::pod_limits(&spec.annotations),
                Role::Alone | Role::Member => &spec.limits,
            },
            is_pod: role == Role::Pod,
            memory_is_set: loaded.is_set("vm.memory_mib"),
            ceiling: ceiling.as_ref(),
        };
        let size = sizing::size(config, purpose, Capacity::of_host())?;
        let promised = size.promised;
        let vm_group = group.beside().map_err(|e| internal(&e))?;
        let settings = Settings {
            directory: self.directory.clone(),
            directory_fd: self.directory_fd.try_clone().map_err(|e| internal(&e))?,
            hostname: spec.hostname.clone(),
            proxy: prefix.find(Artefact::Proxy).map_err(|e| internal(&e))?,
            container_id: (role != Role::Pod).then(|| id.to_owned()),
            limits: spec.limits.clone(),
            vm: vm_settings(config, (parts, accelerator), size, vm_group.procs()),
            group,
            vm_group,
            monitor,
        };
        Ok((settings, promised))
    }
}

fn vm_settings(
    config: &Config,
    (parts, accelerator): (vmm::Parts, AcceleratorChoice),
    size: Size,
    cgroup_procs: Vec<PathBuf>,
) -> VmSettings {
    let pages = vmm::pages(config);
    VmSettings {
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
        rates: Rates {
            inbound: Rate::new(config.network.inbound_kbit_s),
            outbound: Rate::new(config.network.outbound_kbit_s),
        },
        boot_limit: match accelerator.accelerator {
            Accelerator::Kvm => config.boot.timeout_kvm,
            Accelerator::Tcg => config.boot.timeout_tcg,
        },
        silence_limit: config.guest.silence,
        vhost: Arc::new(Vhost::look(accelerator.accelerator)),
        accelerator,
        tsc: Arc::new(TscClock::start()),
    }
}
