//! vhost-net: the kernel moves a card's packets between tap and guest, and QEMU never sees them.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use crate::Accelerator;

const DEVICE: &str = "/dev/vhost-net";

/// Who moves the packets of a VM, and why.
#[derive(Debug)]
pub enum Vhost {
    /// The kernel. One descriptor serves one queue.
    Kernel,
    /// The VMM: under TCG no one else can tell when the guest has packets.
    Emulated,
    /// The VMM, because the host has no vhost-net.
    Absent(io::Error),
}

impl Vhost {
    /// Looks at this host.
    pub fn look(accelerator: Accelerator) -> Self {
        Self::look_at(accelerator, Path::new(DEVICE))
    }

    fn look_at(accelerator: Accelerator, device: &Path) -> Self {
        match accelerator {
            Accelerator::Tcg => Self::Emulated,
            Accelerator::Kvm => match open(device) {
                Ok(_) => Self::Kernel,
                Err(error) => Self::Absent(error),
            },
        }
    }

    /// A descriptor for one more queue; none where the VMM moves the packets.
    pub fn open(&self) -> Option<OwnedFd> {
        match self {
            // It opened a moment ago; should it not now, the VMM does the work.
            Self::Kernel => open(Path::new(DEVICE)).ok().map(OwnedFd::from),
            Self::Emulated | Self::Absent(_) => None,
        }
    }
}

impl fmt::Display for Vhost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("moved by the kernel's vhost-net"),
            Self::Emulated => f.write_str("moved by the VMM: vhost-net serves KVM only"),
            Self::Absent(error) => write!(f, "moved by the VMM: {DEVICE}: {error}"),
        }
    }
}

fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(device)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Vhost;
    use crate::Accelerator;

    #[test]
    fn only_kvm_with_the_device_has_the_kernel_move_packets() {
        let look = |accelerator, device| Vhost::look_at(accelerator, Path::new(device));
        assert!(matches!(look(Accelerator::Kvm, "/dev/null"), Vhost::Kernel));
        assert!(matches!(look(Accelerator::Tcg, "/dev/null"), Vhost::Emulated));
        let absent = look(Accelerator::Kvm, "/no/such/device");
        assert!(absent.open().is_none());
        let told = absent.to_string();
        assert!(told.contains("/dev/vhost-net") && told.contains("No such file"), "{told}");
    }
}
