//! What executes the guest's instructions.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, by the kernel's KVM.
    Kvm,
    /// QEMU's translator. Works everywhere; QEMU does not call it a security boundary.
    Tcg,
}

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorSetting {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG, whatever the host can do.
    Tcg,
}

/// Why KVM can't run a stock guest here.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnusable {
    /// No device, or no right to it.
    #[error("/dev/kvm cannot be opened")]
    Device(#[source] io::Error),
    /// The device alone proves nothing: some hosts have one that starts no ordinary guest.
    #[error("the processor shows neither vmx nor svm in /proc/cpuinfo")]
    Processor,
    /// What the processor can do is not known.
    #[error("/proc/cpuinfo cannot be read")]
    Cpuinfo(#[source] io::Error),
}

/// An accelerator, and why this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorChoice {
    /// What was chosen.
    pub accelerator: Accelerator,
    /// For `state`, `check` and the log.
    pub reason: String,
}

impl AcceleratorSetting {
    /// Looks at this host.
    ///
    /// # Errors
    /// [`KvmUnusable`] when KVM was asked for by name.
    pub fn choose(self) -> Result<AcceleratorChoice, KvmUnusable> {
        self.choose_with(|| probe(Path::new("/dev/kvm"), Path::new("/proc/cpuinfo")))
    }

    fn choose_with(
        self,
        probe: impl FnOnce() -> Result<(), KvmUnusable>,
    ) -> Result<AcceleratorChoice, KvmUnusable> {
        let choice = |accelerator, reason: String| AcceleratorChoice { accelerator, reason };
        match self {
            Self::Tcg => Ok(choice(Accelerator::Tcg, "asked for by the configuration".into())),
            Self::Kvm => {
                probe()?;
                Ok(choice(Accelerator::Kvm, "asked for by the configuration".into()))
            }
            Self::Auto => Ok(match probe() {
                Ok(()) => choice(Accelerator::Kvm, "the host can run it".into()),
                Err(why) => choice(Accelerator::Tcg, format!("no KVM: {}", chain(&why))),
            }),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn probe(device: &Path, cpuinfo: &Path) -> Result<(), KvmUnusable> {
    OpenOptions::new().read(true).write(true).open(device).map_err(KvmUnusable::Device)?;
    let cpuinfo = fs::read_to_string(cpuinfo).map_err(KvmUnusable::Cpuinfo)?;
    let mut flags =
        cpuinfo.lines().filter(|line| line.starts_with("flags")).flat_map(str::split_whitespace);
    if cfg!(target_arch = "x86_64") && !flags.any(|flag| flag == "vmx" || flag == "svm") {
        return Err(KvmUnusable::Processor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io, path::Path};

    use super::{Accelerator, AcceleratorSetting, KvmUnusable, probe};

    fn probe_with(flags: &str) -> Result<(), KvmUnusable> {
        let cpuinfo = tempfile::NamedTempFile::new().unwrap();
        fs::write(cpuinfo.path(), format!("model name\t: vmx svm\nflags\t\t: fpu {flags} sse\n"))
            .unwrap();
        probe(Path::new("/dev/null"), cpuinfo.path())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_device_alone_is_not_kvm() {
        assert!(matches!(probe_with("avx"), Err(KvmUnusable::Processor)));
        assert!(probe_with("vmx").is_ok());
        assert!(probe_with("svm").is_ok());
    }

    #[test]
    fn an_absent_device_is_not_kvm() {
        let error = probe(Path::new("/no/such/device"), Path::new("/proc/cpuinfo"));
        assert!(matches!(error, Err(KvmUnusable::Device(_))));
    }

    #[test]
    fn auto_falls_back_and_says_why() {
        let gone = || Err(KvmUnusable::Device(io::ErrorKind::NotFound.into()));
        let choice = AcceleratorSetting::Auto.choose_with(gone).unwrap();
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert_eq!(choice.reason, "no KVM: /dev/kvm cannot be opened: entity not found");
    }

    #[test]
    fn kvm_by_name_never_falls_back() {
        assert!(AcceleratorSetting::Kvm.choose_with(|| Err(KvmUnusable::Processor)).is_err());
        let choice = AcceleratorSetting::Kvm.choose_with(|| Ok(())).unwrap();
        assert_eq!(choice.accelerator, Accelerator::Kvm);
    }

    #[test]
    fn tcg_by_name_does_not_probe() {
        let choice = AcceleratorSetting::Tcg.choose_with(|| unreachable!()).unwrap();
        assert_eq!(choice.accelerator, Accelerator::Tcg);
    }
}
