//! Whether KVM runs guests here: the one place that looks.
//!
//! Three questions, each cheaper than the next: does `/dev/kvm` open, does the processor show the extension, and does a
//! guest come up? The last one takes a short boot ([`Proof`]), whose answer is kept until host, VMM or guest change:
//! there are hosts on which all looks well and no guest ever starts.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use kata_sys::{causes::chain, replacement::replace};
use rustix::fs::{CWD, Mode};
use serde::{Deserialize, Serialize};

use crate::{Hypervisor, HypervisorError, VmEnd};

const DEVICE: &str = "/dev/kvm";
const CPUINFO: &str = "/proc/cpuinfo";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why KVM can't run a stock guest here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvmUnusable {
    /// The kernel has none, or its module is not loaded.
    #[error("there is no /dev/kvm")]
    Absent,
    /// It is there, and not for us.
    #[error("/dev/kvm may not be opened ({0})")]
    Permission(String),
    /// Anything else that can be wrong with the device.
    #[error("/dev/kvm cannot be opened ({0})")]
    Device(String),
    /// The device alone proves nothing: some hosts have one that starts no ordinary guest.
    #[error("the processor shows neither vmx nor svm in /proc/cpuinfo")]
    Processor,
    /// What the processor can do is not known.
    #[error("/proc/cpuinfo cannot be read ({0})")]
    Cpuinfo(String),
    /// All looked well, and a guest was tried.
    #[error("KVM does not run a stock guest: {0}")]
    Guest(String),
    /// A guest was tried, and what ended it may have been the host.
    #[error("KVM does not run a stock guest: {0} (kata-runtime check tries again)")]
    Unproven(String),
}

/// The first two questions.
///
/// # Errors
/// [`KvmUnusable`].
pub fn probe() -> Result<(), KvmUnusable> {
    look(Path::new(DEVICE), Path::new(CPUINFO))
}

fn look(device: &Path, cpuinfo: &Path) -> Result<(), KvmUnusable> {
    OpenOptions::new().read(true).write(true).open(device).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KvmUnusable::Absent,
        io::ErrorKind::PermissionDenied => KvmUnusable::Permission(error.to_string()),
        _ => KvmUnusable::Device(error.to_string()),
    })?;
    let cpuinfo =
        fs::read_to_string(cpuinfo).map_err(|error| KvmUnusable::Cpuinfo(error.to_string()))?;
    let mut flags =
        cpuinfo.lines().filter(|line| line.starts_with("flags")).flat_map(str::split_whitespace);
    if cfg!(target_arch = "x86_64") && !flags.any(|flag| flag == "vmx" || flag == "svm") {
        return Err(KvmUnusable::Processor);
    }
    Ok(())
}

/// What a proof is about; it holds for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// This boot of the host.
    boot: String,
    files: Vec<Identity>,
}

/// A file as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed_ns: i128,
}

impl Subject {
    /// This host, with this VMM, kernel and initrd.
    ///
    /// # Errors
    /// Those of looking at the files.
    pub fn now(files: [&Path; 3]) -> io::Result<Self> {
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let files = files.into_iter().map(Identity::of).collect::<io::Result<_>>()?;
        Ok(Self { boot, files })
    }
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            path: path.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed_ns: i128::from(metadata.ctime()) * 1_000_000_000
                + i128::from(metadata.ctime_nsec()),
        })
    }
}

/// What came of a short boot under KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    subject: Subject,
    outcome: Outcome,
}

/// How the boot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Up,
    /// With the reason.
    Failed(String),
    /// It did not come up, for a reason that a host which is short of time or memory has, too.
    Undecided(String),
}

/// What a VMM says, in the words of strerror(3), when it is the host that is short of something.
const SHORT: [&str; 4] = [
    "Cannot allocate memory",
    "Too many open files",
    "Resource temporarily unavailable",
    "No space left on device",
];

impl Outcome {
    fn of_end(end: &VmEnd) -> Self {
        match end {
            VmEnd::AgentDied(_) => Self::Up,
            VmEnd::Stopped | VmEnd::VmmKilled { .. } => Self::Undecided(end.to_string()),
            VmEnd::VmmExited { stderr, .. } if SHORT.iter().any(|word| stderr.contains(word)) => {
                Self::Undecided(end.to_string())
            }
            _ => Self::Failed(end.to_string()),
        }
    }
}

impl Proof {
    /// Boots `vm` until the guest's process 1 runs: without a nonce the agent ends at once, upon which the kernel says so.
    pub async fn by_boot(vm: &dyn Hypervisor, subject: Subject, limit: Duration) -> Self {
        let outcome = match vm.boot().await {
            Err(HypervisorError::Boot(end)) => Outcome::of_end(&end),
            Err(error) => Outcome::Undecided(chain(&error)),
            Ok(()) => match tokio::time::timeout(limit, vm.wait()).await {
                Ok(end) => Outcome::of_end(&end),
                Err(_) => Outcome::Undecided(format!("it was not up within {} s", limit.as_secs())),
            },
        };
        // It has ended, or is of no use any more; one that can't be killed is killed when it is dropped.
        vm.stop().await.ok();
        Self { subject, outcome }
    }

    /// That of one boot when the guest came up, else that of another: it is kept as long as the host is up, and one guest
    /// that was lost must not cost all later ones their KVM.
    ///
    /// # Errors
    /// Those of `boot`.
    pub async fn by_boots<E>(boot: impl AsyncFn() -> Result<Self, E>) -> Result<Self, E> {
        let first = boot().await?;
        match first.judge() {
            Ok(()) => Ok(first),
            Err(_) => boot().await,
        }
    }

    /// False when another boot may show something else: whoever asks whether KVM works then has to try again.
    pub fn is_certain(&self) -> bool {
        !matches!(self.outcome, Outcome::Undecided(_))
    }

    /// The proof that was kept, if it is about this subject.
    pub fn kept(place: &Path, subject: &Subject) -> Option<Self> {
        let text = fs::read(place).ok()?;
        let proof: Self = serde_json::from_slice(&text).ok()?;
        (proof.subject == *subject).then_some(proof)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// As of [`replace`].
    pub fn keep(&self, place: &Path) -> io::Result<()> {
        replace(
            CWD,
            place,
            Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH,
            &serde_json::to_vec(self)?,
        )
    }

    /// What it says about KVM.
    ///
    /// # Errors
    /// [`KvmUnusable::Guest`], [`KvmUnusable::Unproven`].
    pub fn judge(&self) -> Result<(), KvmUnusable> {
        match &self.outcome {
            Outcome::Up => Ok(()),
            Outcome::Failed(why) => Err(KvmUnusable::Guest(why.clone())),
            Outcome::Undecided(why) => Err(KvmUnusable::Unproven(why.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use super::{KvmUnusable, Outcome, Proof, Subject, look};
    use crate::{
        VmConfig, VmEnd,
        fake::{Fake, FakeState},
    };

    fn look_with(flags: &str) -> Result<(), KvmUnusable> {
        let cpuinfo = tempfile::NamedTempFile::new().unwrap();
        fs::write(cpuinfo.path(), format!("model name\t: vmx svm\nflags\t\t: fpu {flags} sse\n"))
            .unwrap();
        look(Path::new("/dev/null"), cpuinfo.path())
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_device_alone_is_not_kvm() {
        assert_eq!(look_with("avx"), Err(KvmUnusable::Processor));
        assert_eq!(look_with("vmx"), Ok(()));
        assert_eq!(look_with("svm"), Ok(()));
    }

    #[test]
    fn an_absent_device_is_told_from_one_that_does_not_open() {
        let cpuinfo = Path::new("/proc/cpuinfo");
        assert_eq!(look(Path::new("/no/such/device"), cpuinfo), Err(KvmUnusable::Absent));
        let directory = look(Path::new("/"), cpuinfo);
        assert!(matches!(directory, Err(KvmUnusable::Device(_))), "{directory:?}");
    }

    fn subject() -> Subject {
        Subject::now([Path::new("/proc/self/exe"); 3]).unwrap()
    }

    fn prove(ends: Option<VmEnd>) -> Proof {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let file = || "/proc/self/exe".into();
        let (vm, guest) = Fake::new(VmConfig::new(file(), file()));
        let proof = Proof::by_boot(&vm, subject(), Duration::from_millis(10));
        let play = async {
            guest.reached(&FakeState::Running).await;
            if let Some(end) = ends {
                guest.end(end);
            }
        };
        runtime.block_on(async { tokio::join!(proof, play).0 })
    }

    #[test]
    fn a_guest_whose_process_1_ran_proves_it() {
        let proof = prove(Some(VmEnd::AgentDied("exitcode=0x100".into())));
        assert_eq!((proof.judge(), proof.is_certain()), (Ok(()), true));
    }

    #[test]
    fn any_other_end_and_none_at_all_disprove_it() {
        let exited = VmEnd::VmmExited { code: 1, stderr: "failed to set MSR 0x10a".into() };
        let exited = prove(Some(exited));
        let told = exited.judge().unwrap_err().to_string();
        assert!(told.starts_with("KVM does not run a stock guest: ") && told.contains("0x10a"));
        assert!(exited.is_certain());
        assert!(prove(Some(VmEnd::GuestPanic("no root".into()))).judge().is_err());
        assert!(prove(None).judge().is_err());
    }

    #[test]
    fn what_the_host_may_have_ended_is_to_be_tried_again() {
        let short = "qemu: cannot set up guest memory 'ram': Cannot allocate memory";
        let short = VmEnd::VmmExited { code: 1, stderr: short.into() };
        for end in [None, Some(VmEnd::VmmKilled { signal: 9 }), Some(short)] {
            let undecided = prove(end);
            assert!(!undecided.is_certain());
            assert!(undecided.judge().unwrap_err().to_string().contains("check tries again"));
        }
    }

    #[test]
    fn one_lost_guest_is_no_proof() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let by_boots = |outcomes: &[Outcome]| {
            let outcomes = std::cell::RefCell::new(outcomes.iter().cloned());
            let boot = async || {
                let outcome = outcomes.borrow_mut().next().ok_or("one boot too many")?;
                Ok::<_, &str>(Proof { subject: subject(), outcome })
            };
            let proof = runtime.block_on(Proof::by_boots(boot)).unwrap();
            (proof.outcome, outcomes.into_inner().len())
        };
        let failed = |why: &str| Outcome::Failed(why.into());
        assert_eq!(by_boots(&[Outcome::Up]), (Outcome::Up, 0));
        assert_eq!(by_boots(&[failed("a"), Outcome::Up]), (Outcome::Up, 0));
        let undecided = Outcome::Undecided("late".into());
        assert_eq!(by_boots(&[undecided, Outcome::Up]), (Outcome::Up, 0));
        assert_eq!(by_boots(&[failed("a"), failed("b")]), (failed("b"), 0));
    }

    #[test]
    fn a_proof_is_kept_for_its_subject_alone() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("kvm.json");
        assert_eq!(Proof::kept(&place, &subject()), None);
        let proof = Proof { subject: subject(), outcome: Outcome::Failed("x".into()) };
        proof.keep(&place).unwrap();
        assert_eq!(Proof::kept(&place, &subject()), Some(proof));
        let other = Subject::now([Path::new("/proc/cpuinfo"); 3]).unwrap();
        assert_eq!(Proof::kept(&place, &other), None);
        fs::write(&place, "{").unwrap();
        assert_eq!(Proof::kept(&place, &subject()), None);
    }
}
