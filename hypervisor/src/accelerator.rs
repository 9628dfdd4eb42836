//! What executes the guest's instructions.

use serde::{Deserialize, Serialize};

use crate::{
    KvmUnusable, MemoryMib,
    kvm::{self, Proof},
};

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

/// An accelerator, and why this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorChoice {
    /// What was chosen.
    pub accelerator: Accelerator,
    /// For `state`, `check` and the log.
    pub reason: String,
}

impl Accelerator {
    /// What VMM and proxy take of the host beside the guest's memory, at most: under TCG its translations are the
    /// largest part (docs/performance.md has what was measured).
    pub fn overhead(self) -> MemoryMib {
        match self {
            Self::Kvm => MemoryMib(128),
            Self::Tcg => MemoryMib(256),
        }
    }
}

impl AcceleratorSetting {
    /// Looks at this host; `proof` is what a short boot has shown, if there was one.
    ///
    /// # Errors
    /// [`KvmUnusable`] when KVM was asked for by name.
    pub fn choose(self, proof: Option<&Proof>) -> Result<AcceleratorChoice, KvmUnusable> {
        self.choose_with(|| kvm::probe().and_then(|()| proof.map_or(Ok(()), Proof::judge)))
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
                Err(why) => choice(Accelerator::Tcg, format!("no KVM: {why}")),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Accelerator, AcceleratorSetting, KvmUnusable};

    #[test]
    fn auto_falls_back_and_says_why() {
        let gone = || Err(KvmUnusable::Absent);
        let choice = AcceleratorSetting::Auto.choose_with(gone).unwrap();
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert_eq!(choice.reason, "no KVM: there is no /dev/kvm");
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
