//! How large a VM is, and what it may take of the host, from what its containers ask for.
//!
//! Memory of the VM can't grow yet, so what is decided here holds for its life. Processors can: the VM has as many as may
//! ever be needed, and the guest brings up those that are.

use std::{fs, num::NonZeroU8, thread};

use kata_config::Config;
use kata_engine_api::handover::FailureKind;
use kata_hypervisor::MemoryMib;
use kata_spec::{CpuLimits, DEFAULT_PERIOD_US, Limits, MemoryLimits};

use crate::failure::Refusal;

const MIB: u64 = 1024 * 1024;

/// What the guest's kernel and the agent need beside the container's own memory.
const GUEST_BASE_MIB: u64 = 64;

/// The kernel's table of pages takes a 64th of what it describes.
const PAGE_TABLE_SHARE: u64 = 64;

/// The smallest VM that is made of a limit.
const LEAST_MIB: u64 = 128;

/// What VMM and proxy take beside the guest's memory: measured under TCG, whose translations are the largest part.
const OVERHEAD_MIB: u64 = 256;

/// Part of a processor, in hundredths, that VMM and proxy take for devices, beside the guest's own: without it a container
/// with a tenth of a processor would take a minute to boot.
const OVERHEAD_CPU_PERCENT: u64 = 50;

/// What a sandbox without any shares has, as every group has that nobody says anything of.
const DEFAULT_SHARES: u64 = 1024;

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

/// The size of a VM for containers with these limits, all together.
pub fn size(config: &Config, limits: &Limits, host: Capacity) -> Result<Size, Refusal> {
    let mut notes = Vec::new();
    let memory = memory(config, limits, host, &mut notes)?;
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

/// What VMM and proxy may take together: the sum of the containers' limits, and what running a VM takes.
pub fn vm_limits<'a>(
    memory: MemoryMib,
    containers: impl Iterator<Item = &'a Limits> + Clone,
) -> Limits {
    let bytes = (u64::from(memory.0) + OVERHEAD_MIB) * MIB;
    let limit = i64::try_from(bytes).ok();
    // Swap beyond what every container may have is nobody's.
    let swap = containers.clone().map(|limits| swap_bytes(&limits.memory)).sum::<Option<i64>>();
    let swap = swap.and_then(|swap| limit?.checked_add(swap));
    let memory = MemoryLimits { limit, swap, ..MemoryLimits::default() };
    let block_io = containers.clone().next().map(|first| first.block_io.clone());
    Limits {
        memory,
        cpu: vm_cpu(containers),
        block_io: block_io.unwrap_or_default(),
        ..Limits::default()
    }
}

/// Swap beside memory; none when there is no limit on it.
fn swap_bytes(memory: &MemoryLimits) -> Option<i64> {
    match (memory.swap, memory.limit) {
        (Some(swap @ 1..), Some(limit @ 1..)) => Some((swap - limit).max(0)),
        _ => None,
    }
}

fn vm_cpu<'a>(containers: impl Iterator<Item = &'a Limits> + Clone) -> CpuLimits {
    // The sum of options is one when all are: one container without a limit needs a VM without one.
    let percents = containers.clone().map(|limits| cpu_percent(&limits.cpu));
    let percent = percents.sum::<Option<u64>>().map(|percent| percent + OVERHEAD_CPU_PERCENT);
    let quota = percent.and_then(|percent| i64::try_from(percent * DEFAULT_PERIOD_US / 100).ok());
    let shares = containers.clone().map(|limits| limits.cpu.shares.filter(|shares| *shares != 0));
    CpuLimits {
        // No limit is said, too: an update may take one away.
        quota: Some(quota.unwrap_or(-1)),
        period: Some(DEFAULT_PERIOD_US),
        shares: Some(shares.map(|shares| shares.unwrap_or(DEFAULT_SHARES)).sum()),
        cpus: union(containers.clone().map(|limits| limits.cpu.cpus.as_deref())),
        mems: union(containers.map(|limits| limits.cpu.mems.as_deref())),
        ..CpuLimits::default()
    }
}

/// Hundredths of a processor, rounded up; none when there is no limit.
fn cpu_percent(cpu: &CpuLimits) -> Option<u64> {
    let quota = cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)?;
    let period = cpu.period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
    Some(quota.saturating_mul(100).div_ceil(period).min(u64::from(MOST_VCPUS) * 100))
}

/// Everything that is in one of the lists; none when somebody has no list.
fn union<'a>(lists: impl Iterator<Item = Option<&'a str>>) -> Option<String> {
    let lists: Vec<&str> = lists
        .map(|list| list.map(str::trim).filter(|list| !list.is_empty()))
        .collect::<Option<_>>()?;
    (!lists.is_empty()).then(|| lists.join(","))
}

#[cfg(test)]
mod tests {
    use kata_config::Config;
    use kata_hypervisor::MemoryMib;
    use kata_spec::{Limits, check_resources};

    use super::{Capacity, MIB, OVERHEAD_MIB, size, vm_limits};

    const HOST: Capacity = Capacity { memory_mib: 8192, cpus: 4 };

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    fn memory(limit: u64) -> u32 {
        let limits = limits(&format!(r#"{{"memory": {{"limit": {limit}}}}}"#));
        size(&Config::default(), &limits, HOST).unwrap().memory.0
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
        let notes = size(&Config::default(), &absurd, HOST).unwrap().notes;
        assert!(notes[0].1.contains("8192 MiB of the host"), "{notes:?}");
    }

    #[test]
    fn a_configured_size_above_what_the_host_has_is_an_error() {
        let host = Capacity { memory_mib: 100, ..HOST };
        let refusal = size(&Config::default(), &Limits::default(), host).unwrap_err();
        assert!(refusal.message.contains("vm.memory_mib is 256"), "{}", refusal.message);
    }

    #[test]
    fn processors_follow_from_the_limits_and_stop_at_the_hosts() {
        let vcpus = |json: &str| {
            let size = size(&Config::default(), &limits(json), HOST).unwrap();
            (size.vcpus.get(), size.max_vcpus.get(), size.notes.len())
        };
        assert_eq!(vcpus("{}"), (1, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"quota": 250000, "period": 100000}}"#), (3, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"cpus": "0-1"}}"#), (2, 4, 0));
        assert_eq!(vcpus(r#"{"cpu": {"quota": 1000000000000}}"#), (4, 4, 1));
    }

    #[test]
    fn the_vm_may_take_the_sum_and_what_running_it_takes() {
        let some = [
            limits(r#"{"cpu": {"quota": 50000, "shares": 512, "cpus": "0"}}"#),
            limits(r#"{"cpu": {"quota": 20000, "period": 20000, "cpus": "2-3"}}"#),
        ];
        let vm = vm_limits(MemoryMib(100), some.iter());
        assert_eq!(vm.memory_bytes(), Some((100 + OVERHEAD_MIB) * MIB));
        assert_eq!((vm.cpu.quota, vm.cpu.period), (Some(200_000), Some(100_000)));
        assert_eq!((vm.cpu.shares, vm.cpu.cpus.as_deref()), (Some(1536), Some("0,2-3")));
        let unlimited = [some[0].clone(), Limits::default()];
        let vm = vm_limits(MemoryMib(100), unlimited.iter());
        assert_eq!((vm.cpu.quota, vm.cpu.cpus), (Some(-1), None));
    }
}
