//! The table of keys.

use crate::field::Field;

/// One key: its name in files is `name`, in annotations [`Key::annotation_name`].
#[derive(Clone, Copy)]
pub struct Key {
    /// Table and key, with a dot between.
    pub name: &'static str,
    /// One or two sentences for the reference.
    pub doc: &'static str,
    /// Where the value lives and what it may be.
    pub field: Field,
    /// Whoever may create a container may set it for that container.
    pub annotation: bool,
}

/// What every annotation of ours begins with.
pub(crate) const PREFIX: &str = "io.katacontainers.";

impl Key {
    /// Name of the annotation that sets the key, if one may.
    pub fn annotation_name(&self) -> Option<String> {
        self.annotation.then(|| format!("{PREFIX}{}", self.name))
    }
}

/// An administrator's key: an annotation must not be able to choose what runs as root on the host, or to weaken the
/// wall between guest and host.
const fn host_only(name: &'static str, doc: &'static str, field: Field) -> Key {
    Key { name, doc, field, annotation: false }
}

const fn per_sandbox(name: &'static str, doc: &'static str, field: Field) -> Key {
    Key { name, doc, field, annotation: true }
}

/// A terabit a second.
const MOST_KBIT_S: u32 = 1_000_000_000;

/// Every key there is.
pub const KEYS: &[Key] = &[
    host_only(
        "hypervisor.path",
        "QEMU. Searched for in `PATH`, then `/usr/bin/qemu-system-x86_64`, when not given.",
        Field::Path(|config| &mut config.hypervisor.path),
    ),
    host_only(
        "hypervisor.accelerator",
        "How guest instructions are run. `auto` takes KVM where it can really run a guest, else TCG, which is \
         emulation and no security boundary; `kvm` makes the lack of KVM an error.",
        Field::Accelerator(|config| &mut config.hypervisor.accelerator),
    ),
    per_sandbox(
        "hypervisor.machine",
        "Machine type. `auto` takes `microvm` unless the sandbox needs PCI.",
        Field::Machine(|config| &mut config.hypervisor.machine),
    ),
    per_sandbox(
        "vm.memory_mib",
        "Memory of the VM in MiB when its container has no memory limit; with one the VM is as large as that needs. A \
         limit above what the host has is none. A VM has less where the memory limit of the group that it is in on the host leaves no \
         room for it.",
        Field::Number(64, 1_048_576, |config| &mut config.vm.memory_mib),
    ),
    per_sandbox(
        "vm.pages",
        "Pages of the host that the VM's memory is made of. `huge`: of 2 MiB, from the host's pool (sysctl \
         `vm.nr_hugepages`), all of them reserved when the VM starts; fewer misses of the processor's tables, and no memory that is \
         taken only when it is touched.",
        Field::Pages(|config| &mut config.vm.pages),
    ),
    per_sandbox(
        "vm.vcpus",
        "Virtual processors of the VM when its container has neither a CPU quota nor a list of CPUs; with one there \
         are as many as that needs.",
        Field::Number(1, 255, |config| &mut config.vm.vcpus),
    ),
    per_sandbox(
        "vm.max_vcpus",
        "Most processors that the VM may ever have, by its container's limits or an update of them; never more than \
         the host has.",
        Field::Number(1, 255, |config| &mut config.vm.max_vcpus),
    ),
    per_sandbox(
        "network.spare_nics",
        "Network cards that wait in the guest for links which appear after its start. On q35, with at \
         least one, four more are added when these are taken. A link that finds none stays outside. Without an \
         engine, as by `run --rootfs`, there are none.",
        Field::Number(0, 8, |config| &mut config.network.spare_nics),
    ),
    per_sandbox(
        "network.model",
        "How frames get from a link of the sandbox's network namespace to the guest's, and back. `auto`: redirected by \
         tc's u32 filter, and by an eBPF program where a link has packets without an Ethernet header; `u32` and `ebpf`: by \
         that alone; `none`: the guest has loopback alone, and nothing in the namespace is looked at.",
        Field::NetworkModel(|config| &mut config.network.model),
    ),
    per_sandbox(
        "network.inbound_kbit_s",
        "Most that a link of the sandbox carries to the guest, in units of 1000 bits a second, headers included; each link on its \
         own. 0 for no limit.",
        Field::Number(0, MOST_KBIT_S, |config| &mut config.network.inbound_kbit_s),
    ),
    per_sandbox(
        "network.outbound_kbit_s",
        "The same for what comes from the guest. A link that has a queueing discipline of somebody's own is refused then.",
        Field::Number(0, MOST_KBIT_S, |config| &mut config.network.outbound_kbit_s),
    ),
    host_only(
        "kernel.path",
        "Guest kernel: an ELF `vmlinux` with a PVH entry, or a bzImage. The installed one when not given.",
        Field::Path(|config| &mut config.guest.kernel),
    ),
    host_only(
        "initrd.path",
        "initrd with the agent. The installed one when not given.",
        Field::Path(|config| &mut config.guest.initrd),
    ),
    per_sandbox(
        "guest.silence_s",
        "Seconds for which a guest may answer nobody before it is ended, with the cause `guest_silent`. They count from when a call \
         was left unanswered, and only while the VMM itself answers and its processors are not paused. A day is as good as never.",
        Field::Seconds(86_400, |config| &mut config.guest.silence),
    ),
    host_only(
        "boot.timeout_kvm_s",
        "Seconds that a boot with KVM may take. A boot that shows itself dead fails at once.",
        Field::Seconds(3600, |config| &mut config.boot.timeout_kvm),
    ),
    host_only(
        "boot.timeout_tcg_s",
        "Seconds that a boot with TCG may take.",
        Field::Seconds(3600, |config| &mut config.boot.timeout_tcg),
    ),
    per_sandbox(
        "runtime.output_grace_ms",
        "Milliseconds that the end of a process waits for a grandchild that holds its output open, under `kata-runtime`. \
         For engines that call the shim themselves it is two seconds, and they may read on until they delete the process.",
        Field::Milliseconds(60_000, |config| &mut config.runtime.output_grace),
    ),
    host_only(
        "runtime.linger_s",
        "Seconds that the shim of a container which has ended waits to be told to delete it, when it was created by \
         `kata-runtime`. Then it takes the sandbox away and ends; the record stays, for `state` and `delete`.",
        Field::Seconds(3600, |config| &mut config.runtime.linger),
    ),
    host_only(
        "runtime.log_level",
        "What the shim logs.",
        Field::LogLevel(|config| &mut config.runtime.log_level),
    ),
    host_only(
        "runtime.unknown_annotations",
        "What an annotation does that begins with `io.katacontainers.` and is not in this list: `error` fails the \
         create, `warn` reports it, for those who come from upstream Kata.",
        Field::UnknownAnnotations(|config| &mut config.runtime.unknown_annotations),
    ),
];

/// Annotations of upstream Kata, each with our key for the same thing.
pub(crate) const UPSTREAM: &[(&str, &str)] = &[
    ("io.katacontainers.config.hypervisor.path", "hypervisor.path"),
    ("io.katacontainers.config.hypervisor.machine_type", "hypervisor.machine"),
    ("io.katacontainers.config.hypervisor.machine_accelerators", "hypervisor.accelerator"),
    ("io.katacontainers.config.hypervisor.default_memory", "vm.memory_mib"),
    ("io.katacontainers.config.hypervisor.enable_hugepages", "vm.pages"),
    ("io.katacontainers.config.hypervisor.default_vcpus", "vm.vcpus"),
    ("io.katacontainers.config.hypervisor.kernel", "kernel.path"),
    ("io.katacontainers.config.hypervisor.initrd", "initrd.path"),
    ("io.katacontainers.config.hypervisor.image", "initrd.path"),
    ("io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate", "network.inbound_kbit_s"),
    ("io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate", "network.outbound_kbit_s"),
];

#[cfg(test)]
mod tests {
    use super::{KEYS, UPSTREAM};

    #[test]
    fn names_are_distinct_two_words_and_few() {
        let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        assert!(names.len() <= 40);
        assert!(names.iter().all(|name| name.split('.').count() == 2));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
    }

    #[test]
    fn what_runs_as_root_cannot_be_chosen_by_an_annotation() {
        for name in ["hypervisor.path", "hypervisor.accelerator", "kernel.path", "initrd.path"] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            assert_eq!(key.annotation_name(), None, "{name}");
        }
    }

    #[test]
    fn replacements_exist() {
        for (_, replacement) in UPSTREAM {
            assert!(KEYS.iter().any(|key| key.name == *replacement), "{replacement}");
        }
    }
}
