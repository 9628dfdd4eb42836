//! The VM of a sandbox: what is chosen for it, and why.

use std::{
    collections::BTreeMap, fmt::Write, num::NonZeroU8, path::PathBuf, sync::Arc, time::Duration,
};

use kata_config::NetworkModel;
use kata_hypervisor::{
    AcceleratorChoice, Disk, HypervisorError, KvmUnusable, MacAddress, MachineChoice,
    MachineDemand, MachineType, MemoryMib, Nic as VmNic, Pages, Share, TscClock, Vhost, VmConfig,
    Vsock,
    qemu::{JailSettings, Kernel, Plugged, Qemu, QemuSettings},
};
use kata_protocol::{NONCE_PARAMETER, ROOTS, VOLUMES, hello::BootNonce};
use thiserror::Error;

use crate::{
    network::{Nic, Rates},
    proxy::VmmEnds,
};

/// Random numbers, vsock and the two shares.
const DEVICES_BESIDE_NICS: usize = 4;

/// Places for cards that are added while the VM runs, where there is PCI. Each costs the boot a bridge.
const NIC_PORTS: usize = 4;

/// Each costs the VMM descriptors, and the guest memory for packets that may come.
const MOST_QUEUES: usize = 8;

/// Why the VM could not be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum VmError {
    #[error("KVM is asked for but can't be used")]
    Kvm(#[from] KvmUnusable),
    #[error("start the VM")]
    Boot(#[source] HypervisorError),
}

/// Settings of the VM, as configured.
#[derive(Debug, Clone)]
pub struct VmSettings {
    /// Host path of the VMM.
    pub vmm: PathBuf,
    /// Program and arguments that enter the VMM's jail.
    pub launcher: Vec<String>,
    /// User and group id of the VMM; no other process has it.
    pub user: u32,
    /// `cgroup.procs` files of the groups that the VMM joins before it is one.
    pub cgroup_procs: Vec<PathBuf>,
    /// Host path of the guest kernel.
    pub kernel: PathBuf,
    /// Host path of the initrd.
    pub initrd: PathBuf,
    /// Guest memory.
    pub memory: MemoryMib,
    /// What it is made of.
    pub pages: Pages,
    /// Virtual processors that are up at boot.
    pub vcpus: NonZeroU8,
    /// Virtual processors that there are; the guest brings the others up when they are needed.
    pub max_vcpus: NonZeroU8,
    /// What is to be told of the choice.
    pub notes: BTreeMap<String, String>,
    /// Machine type; chosen by what the sandbox needs when there is none.
    pub machine: Option<MachineType>,
    /// Accelerator, chosen.
    pub accelerator: AcceleratorChoice,
    /// Who moves the packets of its cards.
    pub vhost: Arc<Vhost>,
    /// Measures the host's TSC frequency since the sandbox was made: a guest under TCG needs to be told.
    pub tsc: Arc<TscClock>,
    /// Cards that wait for links which appear later.
    pub spare_nics: usize,
    /// How frames get from a link to its card.
    pub network_model: NetworkModel,
    /// Most that a link may carry.
    pub rates: Rates,
    /// Longest that a boot may take.
    pub boot_limit: Duration,
    /// Longest that the guest may be silent while its VMM runs it.
    pub silence_limit: Duration,
}

impl VmSettings {
    /// Host files that a boot opens.
    pub fn files(&self) -> Vec<PathBuf> {
        let launcher = self.launcher.first().map(PathBuf::from);
        [self.vmm.clone(), self.kernel.clone(), self.initrd.clone()]
            .into_iter()
            .chain(launcher)
            .collect()
    }
}

/// A VM, not booted yet.
pub type Vm = Arc<Qemu>;

/// What is attached to it.
#[derive(Debug)]
pub struct Devices {
    /// Served by the proxy.
    pub ends: VmmEnds,
    /// Taps.
    pub nics: Vec<Nic>,
    /// Block devices of the host.
    pub disks: Vec<Disk>,
}

/// A VM, and notes on what was chosen for it.
pub type Made = (Vm, BTreeMap<String, String>);

/// Chooses the machine and puts the VM together; it boots later.
///
/// # Errors
/// [`VmError`].
pub fn make(settings: &VmSettings, nonce: &BootNonce, devices: Devices) -> Result<Made, VmError> {
    let mut config = VmConfig::new(settings.kernel.clone(), settings.initrd.clone());
    config.command_line = command_line(nonce, settings);
    config.memory = settings.memory;
    config.pages = settings.pages;
    config.vcpus = settings.max_vcpus;
    config.accelerator = settings.accelerator.accelerator;
    config.tsc_khz = settings.tsc.khz();
    config.vsock = Some(Vsock { socket: devices.ends.vsock });
    config.shares = vec![
        Share { tag: ROOTS.0.into(), socket: devices.ends.roots },
        Share { tag: VOLUMES.0.into(), socket: devices.ends.volumes },
    ];
    for nic in devices.nics {
        config.nics.push(card(nic, &settings.vhost));
    }
    config.disks = devices.disks;
    let kernel = Kernel::look(&settings.kernel).map_err(VmError::Boot)?;
    let demand = MachineDemand {
        virtio_devices: config.virtio_devices(),
        stock_kernel: kernel == Kernel::BzImage,
    };
    let machine = match settings.machine {
        Some(machine) => MachineChoice { machine, reason: "asked for by the configuration".into() },
        None => MachineType::choose(demand),
    };
    config.machine = machine.machine;
    // Whoever has none that wait has nobody who would bring links.
    if config.machine == MachineType::Q35 && settings.spare_nics > 0 && !config.nics.is_empty() {
        config.nic_ports = NIC_PORTS;
    }
    let mut notes = notes(settings, &machine);
    let queues = match queues(settings) {
        1 => String::new(),
        several => format!(", {several} queues a card"),
    };
    notes.insert("packets".into(), format!("{}{queues}", settings.vhost));
    let qemu = QemuSettings {
        binary: settings.vmm.clone(),
        jail: Some(JailSettings { launcher: settings.launcher.clone(), user: settings.user }),
        cgroup_procs: settings.cgroup_procs.clone(),
    };
    Ok((Arc::new(Qemu::new(qemu, config).map_err(VmError::Boot)?), notes))
}

/// Where cards are added to a running VM.
pub struct Ports {
    vm: Vm,
    vhost: Arc<Vhost>,
}

impl Ports {
    /// Those of a VM that was made with these settings.
    pub fn of(vm: Vm, settings: &VmSettings) -> Self {
        Self { vm, vhost: settings.vhost.clone() }
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.vm.has_port()
    }

    /// Whether a card is still the VM's: a guest may let go of one although nobody has asked it.
    pub fn has(&self, card: Plugged) -> bool {
        self.vm.has_card(card)
    }

    /// Changes whenever there is room for one more than before.
    pub fn freed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.vm.freed_ports()
    }

    /// Adds a card; none when there is no room.
    ///
    /// # Errors
    /// What the VMM says against it.
    pub async fn plug(&self, nic: Nic) -> Result<Option<Plugged>, HypervisorError> {
        self.vm.plug(card(nic, &self.vhost)).await
    }

    /// Begins to take a card out, which takes as long as the guest likes.
    ///
    /// # Errors
    /// What the VMM says against it; the card is as it was then.
    pub async fn unplug(&self, card: Plugged) -> Result<(), HypervisorError> {
        self.vm.unplug(card).await
    }
}

fn card(nic: Nic, vhost: &Vhost) -> VmNic {
    // All of its queues are the kernel's, or none.
    let vhosts: Option<Vec<_>> = nic.queues.iter().map(|_| vhost.open()).collect();
    VmNic { taps: nic.queues, mac: MacAddress(nic.mac), vhosts: vhosts.unwrap_or_default() }
}

/// Queues that each card has: one a processor, where the kernel serves each on a thread of its own. The VMM's one main loop
/// serves all that it has one after the other.
pub fn queues(settings: &VmSettings) -> usize {
    match *settings.vhost {
        Vhost::Kernel => usize::from(settings.vcpus.get()).min(MOST_QUEUES),
        Vhost::Emulated | Vhost::Absent(_) => 1,
    }
}

/// Cards that wait for links which appear later: as many as are wanted, but not so many that the machine would have to be a
/// larger one for them.
pub fn spare_nics(settings: &VmSettings, others: usize) -> usize {
    let bounded = settings.machine != Some(MachineType::Q35)
        && Kernel::look(&settings.kernel).is_ok_and(|kernel| kernel != Kernel::BzImage);
    let used = DEVICES_BESIDE_NICS + others;
    match MachineType::MICROVM_SLOTS.checked_sub(used) {
        Some(room) if bounded => settings.spare_nics.min(room),
        _ => settings.spare_nics,
    }
}

/// What the agent is told on the kernel's command line; the driver adds what the machine needs.
fn command_line(nonce: &BootNonce, settings: &VmSettings) -> String {
    // The dummy driver makes a link of its own accord, which containers would see.
    let mut line = format!("dummy.numdummies=0 maxcpus={} ", settings.vcpus);
    line.push_str(NONCE_PARAMETER);
    line.push('=');
    for byte in nonce {
        // Writing to a string cannot fail.
        write!(line, "{byte:02x}").ok();
    }
    line
}

fn notes(settings: &VmSettings, machine: &MachineChoice) -> BTreeMap<String, String> {
    let mut notes = settings.notes.clone();
    notes.extend([
        ("machine".into(), format!("{:?}: {}", machine.machine, machine.reason)),
        (
            "accelerator".into(),
            format!("{:?}: {}", settings.accelerator.accelerator, settings.accelerator.reason),
        ),
        ("hypervisor".into(), settings.vmm.display().to_string()),
        ("kernel".into(), settings.kernel.display().to_string()),
        ("initrd".into(), settings.initrd.display().to_string()),
        ("memory".into(), settings.memory.to_string()),
        ("vcpus".into(), format!("{}, at most {}", settings.vcpus, settings.max_vcpus)),
    ]);
    notes
}
