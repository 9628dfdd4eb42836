//! What VMM and proxy may take of the host: the sum of what the containers of the sandbox may, and what running a VM takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use kata_hypervisor::{Accelerator, MemoryMib};
use kata_spec::{
    BlockIoLimits, CpuLimits, DEFAULT_PERIOD_US, Limits, MemoryLimits, ThrottleDevice,
};

use crate::cgroup::{CgroupError, Group};

const MIB: u64 = 1024 * 1024;

/// Part of a processor, in hundredths, that VMM and proxy take for devices, beside the guest's own: without it a container
/// with a tenth of a processor would take a minute to boot.
const OVERHEAD_CPU_PERCENT: u64 = 50;

/// More than any host has: what is above is no limit.
const MOST_PERCENT: u64 = 100 * 8192;

/// What a sandbox without any shares has, as every group has that nobody says anything of.
const DEFAULT_SHARES: u64 = 1024;

/// Of so much of a VM's memory ...
const DESCRIBED: u64 = 512;

/// ... so much is taken by the host's tables of its pages: eight bytes a page in those of VMM, proxy and KVM.
const TABLES: u64 = 3;

/// What VMM and proxy take beside a VM of this size, at most.
fn overhead(accelerator: Accelerator, memory: MemoryMib) -> MemoryMib {
    let tables = u64::from(memory.0) * TABLES / DESCRIBED;
    MemoryMib(accelerator.overhead().0.saturating_add(u32::try_from(tables).unwrap_or(u32::MAX)))
}

/// The largest VM, in MiB, that fits below a limit with so much beside it, and the tables of its pages.
pub fn largest_vm(limit_mib: u64, beside_mib: u64) -> u64 {
    limit_mib.saturating_sub(beside_mib).saturating_mul(DESCRIBED) / (DESCRIBED + TABLES)
}

/// The group of VMM and proxy, and whose limits it is held to.
#[derive(Debug)]
pub struct Budget {
    group: Group,
    /// Of the VM; as large as it is for its life.
    memory: MemoryMib,
    /// What VMM and proxy take beside it.
    overhead: MemoryMib,
    /// By container.
    containers: Mutex<BTreeMap<String, Limits>>,
    /// Bytes of memory; see [`Budget::promise`].
    promised: AtomicU64,
}

impl Budget {
    /// That of a VM of this size.
    pub fn new(group: Group, memory: MemoryMib, accelerator: Accelerator) -> Self {
        let overhead = overhead(accelerator, memory);
        let (containers, promised) = (Mutex::default(), AtomicU64::new(0));
        Self { group, memory, overhead, containers, promised }
    }

    /// The group of VMM and proxy.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Memory of the VM.
    pub fn memory(&self) -> MemoryMib {
        self.memory
    }

    /// Keeps that a container may have a limit of so many bytes of memory, though the VM may not have as much.
    pub fn promise(&self, memory: u64) {
        self.promised.fetch_max(memory, Ordering::Relaxed);
    }

    /// The most that was promised.
    pub fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    /// Shares of the processor that containers ask for, together.
    pub fn shares(&self) -> u64 {
        let containers = self.containers();
        let asked = containers.values().filter_map(|limits| limits.cpu.shares);
        asked.fold(0, u64::saturating_add)
    }

    /// Counts a container in, or its new limits instead of the old ones.
    ///
    /// # Errors
    /// [`CgroupError`] when the host refuses the sum.
    pub fn admit(&self, container_id: &str, limits: &Limits) -> Result<(), CgroupError> {
        let old = self.containers().insert(container_id.to_owned(), limits.clone());
        self.bound_without(old.as_ref())
    }

    /// Counts a container no longer.
    ///
    /// # Errors
    /// As [`Budget::admit`].
    pub fn release(&self, container_id: &str) -> Result<(), CgroupError> {
        let gone = self.containers().remove(container_id);
        self.bound_without(gone.as_ref())
    }

    /// Holds the group to what the containers may take.
    ///
    /// # Errors
    /// As [`Budget::admit`].
    pub fn bound(&self) -> Result<(), CgroupError> {
        self.bound_without(None)
    }

    fn bound_without(&self, gone: Option<&Limits>) -> Result<(), CgroupError> {
        let sum = vm_limits([self.memory, self.overhead], self.containers().values(), gone);
        self.group.bound(&sum)
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Limits>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What VMM and proxy may take together: the sum of the containers' limits, and what running a VM takes. What `gone` has
/// brought is taken away.
fn vm_limits<'a>(
    [memory, overhead]: [MemoryMib; 2],
    containers: impl Iterator<Item = &'a Limits> + Clone,
    gone: Option<&'a Limits>,
) -> Limits {
    let bytes = (u64::from(memory.0) + u64::from(overhead.0)) * MIB;
    let limit = i64::try_from(bytes).ok();
    let swap = vm_swap(containers.clone(), gone).map(|swap| match (limit, swap) {
        (Some(limit), Some(swap)) => limit.checked_add_unsigned(swap).unwrap_or(-1),
        _ => -1,
    });
    let memory = MemoryLimits { limit, swap, ..MemoryLimits::default() };
    let all_block_io = containers.clone().map(|limits| &limits.block_io);
    let block_io = vm_block_io(all_block_io, gone.map(|limits| &limits.block_io));
    Limits { memory, cpu: vm_cpu(containers), block_io, ..Limits::default() }
}

/// Swap beside memory, and whether there is a limit on it: beyond what every container may have it is nobody's, and one
/// container without a limit needs a VM without one. None where nobody has said or had said anything.
fn vm_swap<'a>(
    containers: impl Iterator<Item = &'a Limits> + Clone,
    gone: Option<&'a Limits>,
) -> Option<Option<u64>> {
    let says = |limits: &Limits| limits.swap_bytes().is_some();
    let said = containers.clone().chain(gone).any(says);
    said.then(|| {
        let mut each = containers.map(Limits::swap_bytes);
        each.try_fold(0_u64, |sum, swap| Some(sum.saturating_add(swap?)))
    })
}

fn vm_cpu<'a>(containers: impl Iterator<Item = &'a Limits> + Clone) -> CpuLimits {
    // The sum of options is one when all are: one container without a limit needs a VM without one.
    let percents = containers.clone().map(|limits| cpu_percent(&limits.cpu));
    let percent = percents.sum::<Option<u64>>().filter(|percent| *percent != 0);
    let percent = percent.map(|percent| percent + OVERHEAD_CPU_PERCENT);
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
    Some(quota.saturating_mul(100).div_ceil(period).min(MOST_PERCENT))
}

/// Everything that is in one of the lists; none when somebody has no list.
fn union<'a>(lists: impl Iterator<Item = Option<&'a str>>) -> Option<String> {
    let lists: Vec<&str> = lists
        .map(|list| list.map(str::trim).filter(|list| !list.is_empty()))
        .collect::<Option<_>>()?;
    (!lists.is_empty()).then(|| lists.join(","))
}

fn vm_block_io<'a>(
    containers: impl Iterator<Item = &'a BlockIoLimits> + Clone,
    gone: Option<&'a BlockIoLimits>,
) -> BlockIoLimits {
    // Weights against others below, and of single devices, have no sum.
    let mut each = containers.clone();
    let only = each.next().filter(|_| each.next().is_none()).cloned().unwrap_or_default();
    let weights = containers.clone().map(|of| of.weight.filter(|weight| *weight != 0));
    let weights: Option<Vec<u16>> = weights.collect();
    let rates = |list: fn(&'a BlockIoLimits) -> &'a [ThrottleDevice]| {
        vm_rates(containers.clone().map(list), gone.map(list).unwrap_or_default())
    };
    BlockIoLimits {
        weight: weights.and_then(|weights| weights.into_iter().max()),
        throttle_read_bps_device: rates(|of| &of.throttle_read_bps_device),
        throttle_write_bps_device: rates(|of| &of.throttle_write_bps_device),
        throttle_read_iops_device: rates(|of| &of.throttle_read_iops_device),
        throttle_write_iops_device: rates(|of| &of.throttle_write_iops_device),
        ..only
    }
}

/// For each device the sum of its rates; zero, which takes away what is in force, when a list has none for it.
fn vm_rates<'a>(
    lists: impl Iterator<Item = &'a [ThrottleDevice]> + Clone,
    gone: &'a [ThrottleDevice],
) -> Vec<ThrottleDevice> {
    let number = |device: &ThrottleDevice| (device.major, device.minor);
    let devices: BTreeSet<_> = lists.clone().flatten().chain(gone).map(number).collect();
    let sum = |(major, minor)| {
        // Of a device that a list has twice the last rate counts, as when one after the other is written.
        let rates = lists.clone().map(|list| {
            let last = list.iter().rfind(|device| number(device) == (major, minor));
            last.map(|device| device.rate).filter(|rate| *rate != 0)
        });
        let rate = rates.reduce(|sum, rate| Some(sum?.saturating_add(rate?))).flatten();
        ThrottleDevice { major, minor, rate: rate.unwrap_or(0) }
    };
    devices.into_iter().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::{Accelerator, MemoryMib};
    use kata_spec::{BlockIoLimits, Limits, check_resources};

    use super::{MIB, largest_vm, overhead, vm_limits};

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    #[test]
    fn the_vm_may_take_the_sum_and_what_running_it_takes() {
        let some = [
            limits(r#"{"cpu": {"quota": 50000, "shares": 512, "cpus": "0"}}"#),
            limits(r#"{"cpu": {"quota": 20000, "period": 20000, "cpus": "2-3"}}"#),
        ];
        let vm = vm_limits([MemoryMib(100), MemoryMib(30)], some.iter(), None);
        assert_eq!(vm.memory_bytes(), Some(130 * MIB));
        assert_eq!((vm.cpu.quota, vm.cpu.period), (Some(200_000), Some(100_000)));
        assert_eq!((vm.cpu.shares, vm.cpu.cpus.as_deref()), (Some(1536), Some("0,2-3")));
        let unlimited = [some[0].clone(), Limits::default()];
        let vm = vm_limits([MemoryMib(100), MemoryMib(30)], unlimited.iter(), None);
        assert_eq!((vm.cpu.quota, vm.cpu.cpus), (Some(-1), None));
    }

    #[test]
    fn the_tables_of_a_large_vm_are_counted() {
        assert_eq!(overhead(Accelerator::Kvm, MemoryMib(129)).0, 128);
        assert_eq!(overhead(Accelerator::Tcg, MemoryMib(64 * 1024)).0, 256 + 384);
        for limit in [64_u32, 300, 1000, 6320, 1 << 20] {
            let largest = u32::try_from(largest_vm(limit.into(), 128)).unwrap();
            let with = |memory: u32| memory + overhead(Accelerator::Kvm, MemoryMib(memory)).0;
            assert!(largest == 0 || with(largest) <= limit, "{largest} in {limit}");
            assert!(with(largest + 2) > limit, "{largest} in {limit}");
        }
    }

    #[test]
    fn the_vm_may_swap_as_much_as_all_its_containers() {
        // What is said is memory and swap together.
        let swap = |all: &[&Limits], gone: Option<&Limits>| {
            let vm = vm_limits([MemoryMib(100), MemoryMib(30)], all.iter().copied(), gone);
            let memory = i64::try_from(130 * MIB).unwrap();
            vm.memory.swap.map(|sum| if sum < 0 { sum } else { sum - memory })
        };
        let none = limits(r#"{"unified": {"memory.swap.max": "0"}}"#);
        let some = limits(r#"{"memory": {"limit": 10, "swap": 17}}"#);
        let free = Limits::default();
        assert_eq!(swap(&[&none], None), Some(0));
        assert_eq!(swap(&[&none, &some], None), Some(7));
        assert_eq!(swap(&[&none, &free], None), Some(-1));
        // What was in force is taken away, and where nothing was, nothing is said.
        assert_eq!(swap(&[&free], Some(&none)), Some(-1));
        assert_eq!((swap(&[&free], None), swap(&[], None)), (None, None));
    }

    #[test]
    fn a_list_of_processors_binds_the_vm_only_when_all_have_one() {
        let listed = limits(r#"{"cpu": {"cpus": "0", "mems": "0"}}"#);
        let lists = |all: &[Limits]| {
            let vm = vm_limits([MemoryMib(100), MemoryMib(30)], all.iter(), None);
            (vm.cpu.cpus, vm.cpu.mems)
        };
        assert_eq!(lists(std::slice::from_ref(&listed)), (Some("0".into()), Some("0".into())));
        assert_eq!(lists(&[listed, Limits::default()]), (None, None));
        assert_eq!(lists(&[]), (None, None));
    }

    fn block_io(all: &[&Limits], gone: Option<&Limits>) -> BlockIoLimits {
        vm_limits([MemoryMib(100), MemoryMib(30)], all.iter().copied(), gone).block_io
    }

    #[test]
    fn the_block_io_of_one_container_is_the_vms() {
        let one = limits(
            r#"{"blockIO": {"weight": 300, "leafWeight": 20,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]}}"#,
        );
        assert_eq!(block_io(&[&one], None), one.block_io);
        let both = block_io(&[&one, &one], None);
        assert_eq!((both.weight, both.leaf_weight, both.weight_device.len()), (Some(300), None, 0));
        let heavier = limits(r#"{"blockIO": {"weight": 900}}"#);
        assert_eq!(block_io(&[&heavier, &one], None).weight, Some(900));
        assert_eq!(block_io(&[&heavier, &Limits::default()], None).weight, None);
    }

    #[test]
    fn a_device_is_as_fast_as_all_containers_may_have_it() {
        let rates = |of: BlockIoLimits| -> Vec<_> {
            of.throttle_write_iops_device.iter().map(|d| (d.major, d.minor, d.rate)).collect()
        };
        let fast = limits(
            r#"{"blockIO": {"throttleWriteIOPSDevice": [
                {"major": 8, "minor": 0, "rate": 40}, {"major": 8, "minor": 16, "rate": 5}]}}"#,
        );
        let slow = limits(
            r#"{"blockIO": {"throttleWriteIOPSDevice": [
                {"major": 8, "minor": 0, "rate": 2}, {"major": 7, "minor": 1, "rate": 0}]}}"#,
        );
        let sums = [(7, 1, 0), (8, 0, 42), (8, 16, 0)];
        assert_eq!(rates(block_io(&[&fast, &slow], None)), sums);
        assert_eq!(rates(block_io(&[&slow, &fast], None)), sums);
        let free = Limits::default();
        assert_eq!(rates(block_io(&[&free, &fast], None)), [(8, 0, 0), (8, 16, 0)]);
        // What is left behind would bind the next one.
        assert_eq!(rates(block_io(&[&slow], Some(&fast))), [(7, 1, 0), (8, 0, 2), (8, 16, 0)]);
        assert_eq!(rates(block_io(&[], Some(&fast))), [(8, 0, 0), (8, 16, 0)]);
    }
}
