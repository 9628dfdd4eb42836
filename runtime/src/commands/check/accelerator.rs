//! What runs guests here, why not KVM, and what slows KVM down.

use std::{fmt, fs};

use kata_config::Accelerator;
use serde::Deserialize;

use super::Finding;

const WHAT: &str = "accelerator";
const TCG: &str = "TCG: guests are emulated: slow, and no security boundary";

/// What the shim has found out (`containerd-shim-kata-v2 verify`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verified {
    path: String,
    version: String,
    /// `kvm` or `tcg`.
    accelerator: String,
    /// Why KVM does not run guests.
    kvm_unusable: Option<String>,
    /// Memory of the host that one VM takes beside its guest's.
    pub(super) overhead_mib: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.version)
    }
}

impl Verified {
    /// Guests run under KVM.
    pub(super) fn runs_on_kvm(&self) -> bool {
        self.kvm_unusable.is_none() && self.accelerator == "kvm"
    }

    /// On the accelerator, and advice where that is KVM.
    pub(super) fn findings(&self, wanted: Accelerator) -> Vec<Finding> {
        let mut findings = vec![self.accelerator(wanted)];
        if self.runs_on_kvm() {
            findings.extend(advice(&Host::now()));
        }
        findings
    }

    fn accelerator(&self, wanted: Accelerator) -> Finding {
        match (wanted, &self.kvm_unusable) {
            (Accelerator::Tcg, _) => {
                Finding::warning(WHAT, TCG, "configure hypervisor.accelerator = \"auto\"")
            }
            (Accelerator::Kvm, Some(why)) => {
                Finding::failed(WHAT, format!("KVM is configured, but {why}"), remedy(why))
            }
            (Accelerator::Auto, Some(why)) => {
                Finding::warning(WHAT, format!("{TCG} ({why})"), remedy(why))
            }
            (Accelerator::Auto | Accelerator::Kvm, None) => {
                Finding::ok(WHAT, "KVM: a guest was booted with it")
            }
        }
    }
}

/// What to do about each of the reasons of `kata_hypervisor::KvmUnusable`.
fn remedy(why: &str) -> &'static str {
    if why.contains("there is no /dev/kvm") {
        "modprobe kvm_intel or kvm_amd; if that fails, enable virtualisation in the firmware, or nested virtualisation"
    } else if why.contains("/dev/kvm may not be opened") {
        "allow the device: run as root, and in a container, with c 10:232 rw on a mount without nodev"
    } else if why.contains("tries again") {
        "try again when the host has less to do; if it stays so, ask who runs this host for nested virtualisation"
    } else if why.contains("stock guest") {
        "this KVM is not for ordinary guests: ask who runs this host for nested virtualisation"
    } else {
        "enable virtualisation in the firmware, or nested virtualisation"
    }
}

/// What KVM's speed depends on.
#[derive(Debug, Default)]
struct Host {
    /// The module's parameter is on.
    nx_huge_pages: bool,
    /// The processor has the fault that the parameter is for.
    multihit: bool,
    /// cgroup v2 is mounted with it, or there is no v2.
    favordynmods: bool,
    /// This host is a VM itself.
    nested: bool,
}

impl Host {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let multihit = read("/sys/devices/system/cpu/vulnerabilities/itlb_multihit");
        let mounts = read("/proc/self/mounts");
        let mut v2 = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let processors = read("/proc/cpuinfo");
        let flags = processors.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        Self {
            nx_huge_pages: read("/sys/module/kvm/parameters/nx_huge_pages").trim() == "Y",
            multihit: !multihit.starts_with("Not affected"),
            favordynmods: v2.all(|line| line.contains("favordynmods")),
            nested: flags.split_whitespace().any(|flag| flag == "hypervisor"),
        }
    }
}

fn advice(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.nx_huge_pages && !host.multihit {
        findings.push(Finding::warning(
            "nx_huge_pages",
            "on, though this processor does not need it: huge pages of guests are split, VMs start later",
            "kvm.nx_huge_pages=off on the kernel command line",
        ));
    }
    if host.nx_huge_pages && host.multihit && !host.favordynmods {
        findings.push(Finding::warning(
            "favordynmods",
            "off: each VM starts a thread of KVM's, and moving it between control groups waits for all processors",
            "mount -o remount,favordynmods /sys/fs/cgroup",
        ));
    }
    if host.nested {
        findings.push(Finding::warning(
            "nested",
            "this host is a VM itself: guests' devices go through two hypervisors, several times slower",
            "use a machine of its own where speed counts",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use kata_config::Accelerator;

    use super::{Host, Verified, advice};

    fn verified(kvm_unusable: Option<&str>) -> Verified {
        serde_json::from_value(serde_json::json!({
            "path": "/usr/bin/qemu", "version": "10.0.2", "accelerator": "kvm",
            "kvmUnusable": kvm_unusable, "overheadMib": 256,
        }))
        .unwrap()
    }

    fn told(wanted: Accelerator, why: Option<&str>) -> String {
        let finding = verified(why).accelerator(wanted);
        format!("{:?}: {} -> {:?}", finding.verdict, finding.detail, finding.fix)
    }

    #[test]
    fn kvm_by_name_without_kvm_is_a_failure_and_by_default_a_warning() {
        let why = Some("there is no /dev/kvm");
        let by_name = told(Accelerator::Kvm, why);
        assert!(by_name.starts_with("Failed: KVM is configured, but there is no /dev/kvm"));
        assert!(told(Accelerator::Auto, why).starts_with("Warning: TCG"));
        assert!(told(Accelerator::Auto, None).starts_with("Ok: KVM"));
    }

    #[test]
    fn each_reason_has_a_remedy_of_its_own() {
        let reasons = [
            "there is no /dev/kvm",
            "/dev/kvm may not be opened (Permission denied (os error 13))",
            "the processor shows neither vmx nor svm in /proc/cpuinfo",
            "KVM does not run a stock guest: VMM exited with code 1: failed to set MSR 0x10a",
            "KVM does not run a stock guest: it was not up within 10 s (kata-runtime check tries again)",
        ];
        let fix = |why: &&str| verified(Some(why)).accelerator(Accelerator::Auto).fix;
        let mut told: Vec<_> = reasons.iter().map(fix).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!(told.len(), reasons.len());
    }

    #[test]
    fn advice_is_for_what_slows_kvm_and_can_be_changed() {
        let names =
            |host: Host| advice(&host).iter().map(|finding| finding.what).collect::<Vec<_>>();
        assert_eq!(names(Host::default()), Vec::<&str>::new());
        let on = Host { nx_huge_pages: true, ..Host::default() };
        assert_eq!(names(on), ["nx_huge_pages"]);
        let needed = Host { nx_huge_pages: true, multihit: true, ..Host::default() };
        assert_eq!(names(needed), ["favordynmods"]);
        assert_eq!(names(Host { nested: true, ..Host::default() }), ["nested"]);
    }
}
