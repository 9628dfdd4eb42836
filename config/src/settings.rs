//! The values themselves, typed.

use std::{path::PathBuf, time::Duration};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// What runs the VM.
    pub hypervisor: Hypervisor,
    /// Size of the VM.
    pub vm: Vm,
    /// How it is connected.
    pub network: Network,
    /// What the VM boots.
    pub guest: Guest,
    /// How long a boot may take.
    pub boot: Boot,
    /// How the host side behaves.
    pub runtime: Runtime,
}

/// What runs the VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hypervisor {
    /// QEMU; searched for when not given.
    pub path: Option<PathBuf>,
    /// How guest instructions are run.
    pub accelerator: Accelerator,
    /// Machine type.
    pub machine: Machine,
}

/// Size of the VM, before any container's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What memory is made of.
    pub pages: Pages,
    /// Virtual processors.
    pub vcpus: u32,
    /// Most that it may ever have.
    pub max_vcpus: u32,
}

impl Default for Vm {
    fn default() -> Self {
        Self { memory_mib: 256, pages: Pages::default(), vcpus: 1, max_vcpus: 255 }
    }
}

/// How the VM is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Cards that wait for links which appear later.
    pub spare_nics: u32,
    /// How frames get from a link to the guest.
    pub model: NetworkModel,
    /// Most that a link carries to the guest, in 1000 bits a second; 0 for no limit.
    pub inbound_kbit_s: u32,
    /// Most that it carries from there.
    pub outbound_kbit_s: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            spare_nics: 1,
            model: NetworkModel::default(),
            inbound_kbit_s: 0,
            outbound_kbit_s: 0,
        }
    }
}

/// What the VM boots, the installed files when not given; and how it is looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Kernel, an ELF `vmlinux` with a PVH entry or a bzImage.
    pub kernel: Option<PathBuf>,
    /// initrd with the agent.
    pub initrd: Option<PathBuf>,
    /// How long it may answer nobody.
    pub silence: Duration,
}

impl Default for Guest {
    fn default() -> Self {
        Self { kernel: None, initrd: None, silence: Duration::from_secs(60) }
    }
}

/// Ceilings for a boot that shows signs of life; one without them fails at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// With KVM.
    pub timeout_kvm: Duration,
    /// With TCG.
    pub timeout_tcg: Duration,
}

impl Default for Boot {
    fn default() -> Self {
        // Under TCG eight guests that boot at once on two processors need some 10 s each; the ceiling is for a dead one.
        Self { timeout_kvm: Duration::from_secs(20), timeout_tcg: Duration::from_secs(120) }
    }
}

/// How the host side behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// How long an end waits for grandchildren that hold the output open.
    pub output_grace: Duration,
    /// How long a shim outlives its container when nobody deletes it.
    pub linger: Duration,
    /// What the shim logs.
    pub log_level: LogLevel,
    /// What an unknown annotation under our prefix does.
    pub unknown_annotations: UnknownAnnotations,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            output_grace: Duration::from_secs(2),
            linger: Duration::from_secs(30),
            log_level: LogLevel::default(),
            unknown_annotations: UnknownAnnotations::default(),
        }
    }
}

/// One of a few words.
pub(crate) trait Word: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
    }

    fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("?", |(name, _)| *name)
    }
}

macro_rules! words {
    ($type:ident: $($word:literal = $variant:ident),+) => {
        impl Word for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
    };
}

/// How guest instructions are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM where it can really run a guest, else TCG.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// Emulation, which QEMU does not call a security boundary.
    Tcg,
}
words!(Accelerator: "auto" = Auto, "kvm" = Kvm, "tcg" = Tcg);

/// QEMU's machine types that are known to work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Machine {
    /// The smallest one that has what the sandbox needs.
    #[default]
    Auto,
    /// No PCI, no ACPI tables to speak of: boots fastest.
    Microvm,
    /// PCI, hot-plug, device assignment.
    Q35,
}
words!(Machine: "auto" = Auto, "microvm" = Microvm, "q35" = Q35);

/// How frames get from a link of the namespace to the guest's, and back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkModel {
    /// By the model that suits each link.
    #[default]
    Auto,
    /// Redirected by tc's u32 filter.
    U32,
    /// Redirected by an eBPF program.
    Ebpf,
    /// Not at all: the guest has loopback alone, and nobody looks at the namespace.
    None,
}
words!(NetworkModel: "auto" = Auto, "u32" = U32, "ebpf" = Ebpf, "none" = None);

/// Pages of the host that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// Of the ordinary size, taken when the guest first touches them.
    #[default]
    Normal,
    /// Of 2 MiB, from the host's pool, reserved at boot.
    Huge,
}
words!(Pages: "normal" = Normal, "huge" = Huge);

/// Least important messages that are still logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what was odd.
    Warn,
    /// And the lifecycle, at most ten lines a sandbox.
    #[default]
    Info,
    /// And each step.
    Debug,
    /// And each message.
    Trace,
}
words!(LogLevel: "error" = Error, "warn" = Warn, "info" = Info, "debug" = Debug, "trace" = Trace);

impl LogLevel {
    /// The word that configuration files use.
    pub fn as_str(self) -> &'static str {
        self.name()
    }
}

/// What an unknown annotation under our prefix does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownAnnotations {
    /// It fails the create.
    #[default]
    Error,
    /// It is reported; for those who come from upstream Kata.
    Warn,
}
words!(UnknownAnnotations: "error" = Error, "warn" = Warn);
