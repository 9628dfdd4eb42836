//! What a VM is made of.

use std::{fmt, num::NonZeroU8, os::fd::OwnedFd, path::PathBuf};

use crate::{accelerator::Accelerator, machine::MachineType};

/// Guest memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryMib(pub u32);

impl fmt::Display for MemoryMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Hardware address of a guest's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// vhost-user vsock; the CID is the backend's affair.
#[derive(Debug)]
pub struct Vsock {
    /// Connected to the backend.
    pub socket: OwnedFd,
}

/// vhost-user file system.
#[derive(Debug)]
pub struct Share {
    /// The name that the guest mounts it by, at most 36 bytes.
    pub tag: String,
    /// Connected to the backend.
    pub socket: OwnedFd,
}

/// Network interface on a tap.
#[derive(Debug)]
pub struct Nic {
    /// The queues of one tap, opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and if they are several with IFF_MULTI_QUEUE.
    pub taps: Vec<OwnedFd>,
    /// What the guest sees as its own address.
    pub mac: MacAddress,
    /// `/dev/vhost-net`, once a queue, for the kernel to move the packets; without any the VMM does. Only under KVM.
    pub vhosts: Vec<OwnedFd>,
}

/// Raw image or block device.
#[derive(Debug)]
pub struct Disk {
    /// Open for reading, and for writing if `access` says so.
    pub file: OwnedFd,
    /// What the guest may do with it.
    pub access: Access,
    /// `/dev/disk/by-id` name, at most 20 bytes.
    pub serial: String,
}

/// Pages of the host that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// Of the ordinary size, taken when the guest first touches them.
    #[default]
    Normal,
    /// Of 2 MiB, from the host's pool (`vm.nr_hugepages`), reserved when the VM is made.
    Huge,
}

impl Pages {
    /// Guest memory is a multiple of this.
    pub fn granularity(self) -> MemoryMib {
        match self {
            Self::Normal => MemoryMib(1),
            Self::Huge => MemoryMib(2),
        }
    }
}

/// Everything that a VM is made of; the descriptors are handed to the VMM.
#[derive(Debug)]
pub struct VmConfig {
    /// PVH ELF or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// Kernel parameters of the caller's own; the driver adds what machine and accelerator need.
    pub command_line: String,
    /// Guest memory; shared with the vhost-user backends.
    pub memory: MemoryMib,
    /// What guest memory is made of.
    pub pages: Pages,
    /// Virtual processors.
    pub vcpus: NonZeroU8,
    /// Machine type, see [`MachineType::choose`].
    pub machine: MachineType,
    /// Accelerator, see [`crate::AcceleratorSetting::choose`].
    pub accelerator: Accelerator,
    /// Host's TSC frequency in kHz, see [`crate::TscClock`]. Without it a guest under TCG calibrates, and on a busy
    /// host hangs for ever.
    pub tsc_khz: Option<u32>,
    /// Transport to the agent.
    pub vsock: Option<Vsock>,
    /// Shared file systems.
    pub shares: Vec<Share>,
    /// Network interfaces, in the order that the guest sees.
    pub nics: Vec<Nic>,
    /// Network interfaces that may be added while it runs; only where there is PCI, and at most eight.
    pub nic_ports: usize,
    /// Disks, in the order that the guest sees.
    pub disks: Vec<Disk>,
}

impl VmConfig {
    /// A VM without any device but console and random numbers.
    pub fn new(kernel: PathBuf, initrd: PathBuf) -> Self {
        Self {
            kernel,
            initrd,
            command_line: String::new(),
            memory: MemoryMib(128),
            pages: Pages::default(),
            vcpus: NonZeroU8::MIN,
            machine: MachineType::Microvm,
            accelerator: Accelerator::Tcg,
            tsc_khz: None,
            vsock: None,
            shares: Vec::new(),
            nics: Vec::new(),
            nic_ports: 0,
            disks: Vec::new(),
        }
    }

    /// Virtio devices that the machine needs a place for, the random number generator included.
    pub fn virtio_devices(&self) -> usize {
        1 + usize::from(self.vsock.is_some())
            + self.shares.len()
            + self.nics.len()
            + self.disks.len()
    }
}
