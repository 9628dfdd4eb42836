//! Which machine the guest sees.

use serde::{Deserialize, Serialize};

/// Which machine the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// virtio-mmio only: no PCI, no ACPI, the fastest boot, nothing can be added later.
    Microvm,
    /// PCI Express and ACPI: devices come and go.
    Q35,
}

/// What a sandbox demands of its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineDemand {
    /// Virtio devices at boot, [`crate::VmConfig::virtio_devices`].
    pub virtio_devices: usize,
    /// The kernel is a distribution's: it finds devices by PCI and ACPI, not on its command line.
    pub stock_kernel: bool,
}

/// A machine type, and why this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineChoice {
    /// What was chosen.
    pub machine: MachineType,
    /// For `state` and the log.
    pub reason: String,
}

impl MachineType {
    /// The virtio-mmio slots that QEMU gives a microvm without ACPI.
    pub const MICROVM_SLOTS: usize = 8;

    /// The smallest machine that meets the demand.
    pub fn choose(demand: MachineDemand) -> MachineChoice {
        let q35 = |reason| MachineChoice { machine: Self::Q35, reason };
        if demand.stock_kernel {
            return q35("a packaged kernel looks for its devices on PCI".into());
        }
        if demand.virtio_devices > Self::MICROVM_SLOTS {
            return q35(format!(
                "{} virtio devices are more than the {} that microvm has room for",
                demand.virtio_devices,
                Self::MICROVM_SLOTS
            ));
        }
        MachineChoice { machine: Self::Microvm, reason: "nothing needs PCI".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{MachineDemand, MachineType};

    #[test]
    fn microvm_unless_something_needs_pci() {
        let devices = MachineDemand { virtio_devices: 8, ..MachineDemand::default() };
        assert_eq!(MachineType::choose(devices).machine, MachineType::Microvm);
        for demand in [
            MachineDemand { virtio_devices: 9, ..devices },
            MachineDemand { stock_kernel: true, ..devices },
        ] {
            let choice = MachineType::choose(demand);
            assert_eq!(choice.machine, MachineType::Q35);
            assert!(!choice.reason.is_empty());
        }
    }
}
