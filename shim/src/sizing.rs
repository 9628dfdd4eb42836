//! How large a VM is, from what its containers ask for.
//!
//! Memory of the VM can't grow yet, so what is decided here holds for its life. Processors can: the VM has as many as may
//! ever be needed, and the guest brings up those that are.

use std::{collections::BTreeMap, fs, num::NonZeroU8, thread};

use kata_config::Config;
use kata_engine_api::handover::FailureKind;
use kata_hypervisor::MemoryMib;
use kata_spec::Limits;

use crate::failure::Refusal;

const MIB: u64 = 1024 * 1024;

/// What the guest's kernel and the agent need beside the container's own memory.
const GUEST_BASE_MIB: u64 = 64;

/// The kernel's table of pages takes a 64th of what it describes.
const PAGE_TABLE_SHARE: u64 = 64;

/// The smallest VM that is made of a limit.
const LEAST_MIB: u64 = 128;

/// The least for a pod: nobody says how much those of its containers will need that have no limit.
const POD_MIB: u32 = 512;

/// The kernel of the guest has room for so many.
const MOST_VCPUS: u32 = 64;

/// What the host has.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// All of its memory.
    pub memory_mib: u64,
    /// Processors that this process may use.
    pub cpus: u32,
}

impl Capacity {
    /// Looks.
    pub fn of_host() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let cpus = thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
        // A host that does not tell has enough: the VMM says so when it has not.
        Self { memory_mib: kib.map_or(u64::MAX, |kib| kib / 1024), cpus: cpus.unwrap_or(1) }
    }
}

/// How large a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Its memory.
    pub memory: MemoryMib,
    /// Processors that are up at boot.
    pub vcpus: NonZeroU8,
    /// Processors that it has.
    pub max_vcpus: NonZeroU8,
    /// What was not done as asked for, for `state`.
    pub notes: Vec<(&'static str, String)>,
}

/// For whom a VM is.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// Limits of all its containers together.
    pub limits: &'a Limits,
    /// More containers will come.
    pub is_pod: bool,
    /// Somebody has set `vm.memory_mib`: that much a pod has, whatever the limits are.
    pub memory_is_set: bool,
}

impl Purpose<'_> {
    /// What there is at least.
    fn least_mib(&self, config: &Config) -> u32 {
        match (self.is_pod, self.memory_is_set) {
            (true, true) => config.vm.memory_mib,
            // What is told is the sum of the limits that there are: a container without one counts as nothing.
            (true, false) => POD_MIB,
            (false, _) => 0,
        }
    }
}

/// The size of a VM.
pub fn size(config: &Config, purpose: Purpose<'_>, host: Capacity) -> Result<Size, Refusal> {
    let (mut notes, limits) = (Vec::new(), purpose.limits);
    let memory = memory(config, limits, host, &mut notes)?;
    let least = u64::from(purpose.least_mib(config)).min(host.memory_mib);
    let memory = memory.max(MemoryMib(u32::try_from(least).unwrap_or(u32::MAX)));
    let most = host.cpus.clamp(1, MOST_VCPUS);
    let max = config.vm.max_vcpus.min(most);
    let wanted = limits.cpus().unwrap_or(config.vm.vcpus).max(1);
    if wanted > max {
        let note =
            format!("{max}, not {wanted}: the host has {}, and vm.max_vcpus counts", host.cpus);
        notes.push(("vcpusNote", note));
    }
    let count =
        |number: u32| u8::try_from(number).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MIN);
    Ok(Size { memory, vcpus: count(wanted.min(max)), max_vcpus: count(max), notes })
}

/// Refuses a container that its limit promises more than the VM has, which can't grow. A limit above what the host has is
/// none.
pub fn must_fit(limits: &Limits, vm: MemoryMib, host: Capacity) -> Result<(), Refusal> {
    let limit = limits.memory_bytes().map(|bytes| bytes.div_ceil(MIB)).unwrap_or_default();
    if limit <= u64::from(vm.0) || limit > host.memory_mib {
        return Ok(());
    }
    let message = format!(
        "the container's memory limit of {limit} MiB does not fit into the pod's VM of {vm}, which can't grow: have the pod's \
         resources told when it is made (kubelets do), or set its annotation io.katacontainers.vm.memory_mib"
    );
    Err(Refusal::new(FailureKind::InvalidArgument, message))
}

/// What the containers of a pod are going to ask for together, as containerd and CRI-O tell it of the whole.
pub fn pod_limits(annotations: &BTreeMap<String, String>) -> Limits {
    let number = |name: &str| {
        let value = annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"));
        value.and_then(|value| value.trim().parse::<i64>().ok()).filter(|value| *value > 0)
    };
    let mut limits = Limits::default();
    limits.memory.limit = number("memory");
    limits.cpu.quota = number("cpu-quota");
    limits.cpu.period = number("cpu-period").and_then(|period| u64::try_from(period).ok());
    limits
}

/// The configured size; a container with a limit gets that much for itself. A limit above what the host has is none.
fn memory(
    config: &Config,
    limits: &Limits,
    host: Capacity,
    notes: &mut Vec<(&'static str, String)>,
) -> Result<MemoryMib, Refusal> {
    let configured = config.vm.memory_mib;
    let limit = limits.memory_bytes().map(|bytes| bytes.div_ceil(MIB));
    if let Some(limit) = limit.filter(|limit| *limit <= host.memory_mib) {
        let wanted = limit + limit / PAGE_TABLE_SHARE + GUEST_BASE_MIB;
        let mib = wanted.clamp(LEAST_MIB, host.memory_mib.max(LEAST_MIB));
        return Ok(MemoryMib(u32::try_from(mib).unwrap_or(u32::MAX)));
    }
    if u64::from(configured) > host.memory_mib {
        let message = format!(
            "vm.memory_mib is {configured}, and this host has {} MiB of memory",
            host.memory_mib
        );
        return Err(Refusal::new(FailureKind::InvalidArgument, message));
    }
    if let Some(limit) = limit {
        let note = format!(
            "the limit of {limit} MiB is more than the {} MiB of the host, so it is none: the VM has its \
             configured size",
            host.memory_mib
        );
        notes.push(("memoryNote", note));
    }
    Ok(MemoryMib(configured))
}

#[cfg(test)]
mod tests {
    use kata_config::Config;
    use kata_spec::{Limits, check_resources};

    use super::{Capacity, MIB, MemoryMib, POD_MIB, Purpose, must_fit, pod_limits, size};

    const HOST: Capacity = Capacity { memory_mib: 8192, cpus: 4 };

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    fn alone(limits: &Limits) -> Purpose<'_> {
        Purpose { limits, is_pod: false, memory_is_set: false }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let limits = |mib: u64| limits(&format!(r#"{{"memory": {{"limit": {}}}}}"#, mib * MIB));
        let fits = |mib: u64| must_fit(&limits(mib), MemoryMib(512), HOST);
        assert!(fits(512).is_ok() && fits(8193).is_ok());
        let message = fits(513).unwrap_err().message;
        assert!(message.contains("513 MiB") && message.contains("512 MiB"), "{message}");
        assert!(must_fit(&Limits::default(), MemoryMib(1), HOST).is_ok());
    }

    fn memory(limit: u64) -> u32 {
        let limits = limits(&format!(r#"{{"memory": {{"limit": {limit}}}}}"#));
        size(&Config::default(), alone(&limits), HOST).unwrap().memory.0
    }

    #[test]
    fn a_limit_is_the_containers_own() {
        assert_eq!(memory(256 * MIB), 256 + 4 + 64);
        assert_eq!(memory(1), 128);
        assert_eq!(memory(8192 * MIB), 8192);
    }

    #[test]
    fn a_limit_above_what_the_host_has_is_none_and_told() {
        for limit in [1 << 40, i64::MAX as u64, 8193 * MIB] {
            assert_eq!(memory(limit), Config::default().vm.memory_mib, "{limit}");
        }
        let absurd = limits(r#"{"memory": {"limit": 1099511627776}}"#);
        let notes = size(&Config::default(), alone(&absurd), HOST).unwrap().notes;
        assert!(notes[0].1.contains("8192 MiB of the host"), "{notes:?}");
    }

    #[test]
    fn a_configured_size_above_what_the_host_has_is_an_error() {
        let host = Capacity { memory_mib: 100, ..HOST };
        let refusal = size(&Config::default(), alone(&Limits::default()), host).unwrap_err();
        assert!(refusal.message.contains("vm.memory_mib is 256"), "{}", refusal.message);
    }

    #[test]
    fn a_pod_is_as_large_as_its_containers_will_need() {
        let annotation = |name: &str, value: &str| {
            (format!("io.kubernetes.cri.sandbox-{name}"), value.to_owned())
        };
        let asked = [
            annotation("memory", "536870912"),
            annotation("cpu-quota", "150000"),
            annotation("cpu-period", "100000"),
        ];
        let limits = pod_limits(&asked.into());
        let size = |purpose| size(&Config::default(), purpose, HOST).unwrap();
        let pod = Purpose { is_pod: true, ..alone(&limits) };
        let told = size(pod);
        assert_eq!((told.memory.0, told.vcpus.get()), (512 + 8 + 64, 2));
        let sidecar = check_resources(br#"{"memory": {"limit": 67108864}}"#).unwrap().limits;
        assert_eq!(size(Purpose { limits: &sidecar, ..pod }).memory, MemoryMib(POD_MIB));
        let untold = Limits::default();
        assert_eq!(size(Purpose { limits: &untold, ..pod }).memory, MemoryMib(POD_MIB));
        // What a person has set counts where it is more.
        let set = Purpose { memory_is_set: true, ..pod };
        assert_eq!(size(set).memory, told.memory);
        assert_eq!(size(Purpose { limits: &untold, ..set }).memory.0, 256);
        assert_eq!(pod_limits(&[annotation("memory", "0")].into()), Limits::default());
    }

    #[test]
    fn processors_follow_from_the_limits_and_stop_at_the_hosts() {
        let vcpus = |json: &str| {
            let size = size(&Config::default(), alone(&limits(json)), HOST).unwrap();
            (size.vcpus.get(), size.max_vcpus.get(), size.notes.len())
        };
        assert_eq!(vcpus("{}"), (1, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"quota": 250000, "period": 100000}}"#), (3, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"cpus": "0-1"}}"#), (2, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"quota": 1000000000000}}"#), (4, 4, 1));
    }
}
