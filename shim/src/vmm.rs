//! What this program does about the VMM besides running it: becoming it, finding what it is made of, and looking it over.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use kata_config::{Artefact, ArtefactError, Config, Loaded, Prefix, find_vmm};
use kata_hypervisor::{
    Accelerator, AcceleratorChoice, AcceleratorSetting, HypervisorError, KvmUnusable,
    MachineDemand, MachineType, Pages, VmConfig, jail,
    kvm::{self, Proof, Subject},
    qemu::{self, JailSettings, Kernel, Qemu, QemuSettings},
};
use rustix::fs::Mode;
use serde_json::json;

/// Where the proof of a short boot is kept: it holds for this boot of the host alone, and so does what is in `/run`.
const PROOF: &str = "/run/kata-kvm.json";

/// First of the user ids that VMMs run under. The shim's pid picks one: no two live shims have the same, and a VMM never
/// outlives its shim, so nothing has to be allocated, locked or given back.
const FIRST_VMM_USER: u32 = 2_000_000_000;

/// Enters the jail that the driver describes, and becomes the VMM.
pub fn enter_jail() -> anyhow::Result<()> {
    // The jail is for another user, whatever the caller thinks of its own files.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    match jail::enter_and_exec() {
        Ok(never) => match never {},
        Err(error) => Err(error).context("enter the VMM's jail"),
    }
}

/// User and group id of this shim's VMM.
pub fn user() -> u32 {
    FIRST_VMM_USER + std::process::id()
}

/// What guest memory is made of.
pub fn pages(config: &Config) -> Pages {
    match config.vm.pages {
        kata_config::Pages::Normal => Pages::Normal,
        kata_config::Pages::Huge => Pages::Huge,
    }
}

fn setting(config: &Config) -> AcceleratorSetting {
    match config.hypervisor.accelerator {
        kata_config::Accelerator::Auto => AcceleratorSetting::Auto,
        kata_config::Accelerator::Kvm => AcceleratorSetting::Kvm,
        kata_config::Accelerator::Tcg => AcceleratorSetting::Tcg,
    }
}

/// The files that a VM is started from.
#[derive(Debug)]
pub struct Parts {
    pub vmm: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Program and arguments that enter the VMM's jail.
    pub launcher: Vec<String>,
}

impl Parts {
    pub fn find(config: &Config, prefix: &Prefix) -> Result<Self, ArtefactError> {
        let shim = prefix.find(Artefact::Shim)?;
        Ok(Self {
            vmm: find_vmm(config)?,
            kernel: prefix.kernel(config)?,
            initrd: prefix.initrd(config)?,
            launcher: vec![shim.to_string_lossy().into_owned(), "vmm-jail".into()],
        })
    }

    /// The accelerator, by what the host shows and what is known of an earlier short boot; `verify` makes one.
    pub fn choose(&self, config: &Config) -> Result<AcceleratorChoice, KvmUnusable> {
        let proof = self.subject().ok().and_then(|known| Proof::kept(Path::new(PROOF), &known));
        setting(config).choose(proof.as_ref())
    }

    fn subject(&self) -> io::Result<Subject> {
        Subject::now([&self.vmm, &self.kernel, &self.initrd])
    }

    /// Whether KVM runs a guest made of these, by a short boot unless one is known. What may have been the host's doing is tried
    /// again whenever somebody asks: a busy host must not be without KVM until it boots.
    async fn prove(&self, config: &Config) -> anyhow::Result<Result<(), KvmUnusable>> {
        if let Err(unusable) = kvm::probe() {
            return Ok(Err(unusable));
        }
        let subject = self.subject().context("look at what guests are made of")?;
        let kept = Proof::kept(Path::new(PROOF), &subject);
        if let Some(proof) = kept.filter(Proof::is_certain) {
            return Ok(proof.judge());
        }
        let proof = Proof::by_boots(async || self.boot(config, subject.clone()).await).await?;
        proof.keep(Path::new(PROOF)).with_context(|| format!("write {PROOF}"))?;
        Ok(proof.judge())
    }

    async fn boot(&self, config: &Config, subject: Subject) -> anyhow::Result<Proof> {
        let vm = self.bare_vm().context("prepare a guest that proves KVM")?;
        Ok(Proof::by_boot(&vm, subject, config.boot.timeout_kvm).await)
    }

    /// A guest without any device, jailed as all are.
    fn bare_vm(&self) -> Result<Qemu, HypervisorError> {
        let stock_kernel = Kernel::look(&self.kernel)? == Kernel::BzImage;
        let demand = MachineDemand { stock_kernel, ..MachineDemand::default() };
        let mut vm = VmConfig::new(self.kernel.clone(), self.initrd.clone());
        vm.accelerator = Accelerator::Kvm;
        vm.machine = MachineType::choose(demand).machine;
        let settings = QemuSettings {
            binary: self.vmm.clone(),
            jail: Some(JailSettings { launcher: self.launcher.clone(), user: user() }),
            cgroup_procs: Vec::new(),
        };
        Qemu::new(settings, vm)
    }
}

/// Prints, as JSON, whether the VMM has what the driver needs, and what runs guests here.
pub fn verify() -> anyhow::Result<()> {
    let config = Loaded::read(&kata_config::directory())?.config;
    let vmm = find_vmm(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let verified = runtime.block_on(qemu::verify(&vmm))?;
    let parts = Parts::find(&config, &Prefix::of_this_program()?)?;
    let unusable = runtime.block_on(parts.prove(&config))?.err();
    // What could not be chosen, because KVM was asked for by name, would have been KVM.
    let chosen = parts.choose(&config).map_or(Accelerator::Kvm, |choice| choice.accelerator);
    let report = json!({
        "path": vmm,
        "version": verified.version.to_string(),
        "accelerator": chosen,
        "kvmUnusable": unusable.map(|why| why.to_string()),
        "overheadMib": chosen.overhead().0,
    });
    serde_json::to_writer(io::stdout(), &report).context("print the report")?;
    Ok(())
}
