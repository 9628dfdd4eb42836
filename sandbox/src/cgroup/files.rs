//! Limits as the files of a group, of v1 and of v2.

use kata_protocol::weight;
use kata_spec::{
    CpuLimits, DEFAULT_PERIOD_US, HugepageLimit, Limits, MemoryLimits, ThrottleDevice,
};

/// One value for one file of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) value: String,
    /// What the host's kernel may refuse: nothing depends on it but what engines read.
    pub(super) lenient: bool,
}

fn set(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting { file: file.into(), value: value.to_string(), lenient: false }
}

fn shown(file: &str, value: impl ToString) -> Setting {
    Setting { lenient: true, ..set(file, value) }
}

/// What is used and what is reserved. Kernels before 5.7 do not know the second.
fn huge_pages(huge: &HugepageLimit, [used, reserved]: [&str; 2]) -> [Setting; 2] {
    let file = |file| format!("hugetlb.{}.{file}", huge.page_size);
    [set(file(used), huge.limit), shown(&file(reserved), huge.limit)]
}

/// A number that asks for something.
fn some<T: Copy + Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

fn text(value: Option<&String>) -> Option<&String> {
    value.filter(|text| !text.trim().is_empty())
}

/// What a v1 controller is told. `in_force` is its present `memory.limit_in_bytes`.
pub(super) fn legacy(controller: &str, limits: &Limits, in_force: Option<i64>) -> Vec<Setting> {
    match controller {
        "memory" => legacy_memory(&limits.memory, in_force),
        "cpu" => legacy_cpu(&limits.cpu),
        "cpuset" => cpuset(&limits.cpu),
        "pids" => pids(limits),
        "blkio" => legacy_block_io(limits),
        "hugetlb" => limits
            .hugepage_limits
            .iter()
            .flat_map(|huge| huge_pages(huge, ["limit_in_bytes", "rsvd.limit_in_bytes"]))
            .collect(),
        _ => Vec::new(),
    }
}

fn legacy_memory(memory: &MemoryLimits, in_force: Option<i64>) -> Vec<Setting> {
    let limit = some(memory.limit).map(|limit| set("memory.limit_in_bytes", limit));
    let swap = match (some(memory.swap), some(memory.limit)) {
        // The sum can't stay below what memory alone may now be.
        (None, Some(-1)) => Some(-1),
        (swap, _) => swap,
    };
    let both = swap.map(|swap| set("memory.memsw.limit_in_bytes", swap));
    // The sum must not be below its part at any moment.
    let sum_first = match (swap, in_force) {
        (Some(-1), _) => true,
        (Some(swap), Some(limit)) => swap > limit,
        _ => false,
    };
    let mut settings: Vec<Setting> =
        if sum_first { [both, limit] } else { [limit, both] }.into_iter().flatten().collect();
    settings.extend(some(memory.reservation).map(|v| set("memory.soft_limit_in_bytes", v)));
    settings.extend(some(memory.kernel).map(|v| shown("memory.kmem.limit_in_bytes", v)));
    settings.extend(some(memory.kernel_tcp).map(|v| shown("memory.kmem.tcp.limit_in_bytes", v)));
    settings.extend(memory.swappiness.map(|value| shown("memory.swappiness", value)));
    settings.extend(some(memory.disable_oom_killer).map(|_| shown("memory.oom_control", 1)));
    settings
}

fn legacy_cpu(cpu: &CpuLimits) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(cpu.idle.map(|idle| set("cpu.idle", idle)));
    // An idle group has no weight: the kernel refuses to set one.
    let shares = some(cpu.shares).filter(|_| cpu.idle != Some(1));
    settings.extend(shares.map(|shares| set("cpu.shares", shares)));
    // The period first: a quota is checked against it.
    settings.extend(some(cpu.period).map(|period| set("cpu.cfs_period_us", period)));
    settings.extend(some(cpu.quota).map(|quota| set("cpu.cfs_quota_us", quota)));
    settings.extend(cpu.burst.map(|burst| set("cpu.cfs_burst_us", burst)));
    settings
}

fn cpuset(cpu: &CpuLimits) -> Vec<Setting> {
    let lists = [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)];
    lists.into_iter().filter_map(|(file, list)| Some(set(file, text(list.as_ref())?))).collect()
}

fn pids(limits: &Limits) -> Vec<Setting> {
    let limit = some(limits.pids.limit);
    limit.map(|limit| set("pids.max", maximum(limit))).into_iter().collect()
}

fn maximum(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn legacy_block_io(limits: &Limits) -> Vec<Setting> {
    let block_io = &limits.block_io;
    let mut settings = Vec::new();
    for scheduler in ["blkio.weight", "blkio.bfq.weight"] {
        // Which of them is there depends on the host's scheduler.
        settings.extend(some(block_io.weight).map(|weight| set(scheduler, weight)));
    }
    settings.extend(some(block_io.leaf_weight).map(|weight| set("blkio.leaf_weight", weight)));
    for device in &block_io.weight_device {
        let number = format!("{}:{}", device.major, device.minor);
        let line = |weight: u16| format!("{number} {weight}");
        settings.extend(some(device.weight).map(|w| set("blkio.weight_device", line(w))));
        // Refused for a device that has another scheduler now.
        settings.extend(some(device.weight).map(|w| shown("blkio.bfq.weight_device", line(w))));
        settings.extend(some(device.leaf_weight).map(|w| set("blkio.leaf_weight_device", line(w))));
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", &block_io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block_io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block_io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block_io.throttle_write_iops_device),
    ] {
        let line =
            |device: &ThrottleDevice| format!("{}:{} {}", device.major, device.minor, device.rate);
        settings.extend(devices.iter().map(|device| throttle(file, device, line(device))));
    }
    settings
}

/// No rate is as good as set for a device that is not there any more.
fn throttle(file: &str, device: &ThrottleDevice, value: String) -> Setting {
    Setting { lenient: device.rate == 0, ..set(file, value) }
}

/// What a v2 group is told.
pub(super) fn unified(limits: &Limits) -> Vec<Setting> {
    let mut settings = unified_memory(&limits.memory);
    settings.extend(unified_cpu(&limits.cpu));
    settings.extend(cpuset(&limits.cpu));
    settings.extend(pids(limits));
    settings.extend(unified_block_io(limits));
    for huge in &limits.hugepage_limits {
        settings.extend(huge_pages(huge, ["max", "rsvd.max"]));
    }
    settings
}

fn unified_memory(memory: &MemoryLimits) -> Vec<Setting> {
    let limit = some(memory.limit);
    let swap = match (some(memory.swap), limit) {
        (None, Some(-1)) | (Some(..0), _) => Some("max".to_owned()),
        (Some(swap), Some(limit @ 0..)) => Some((swap - limit).max(0).to_string()),
        // Nothing can be taken off it.
        (Some(swap), Some(..0)) => Some(swap.to_string()),
        _ => None,
    };
    let mut settings: Vec<Setting> = swap.map(|v| set("memory.swap.max", v)).into_iter().collect();
    settings.extend(limit.map(|limit| set("memory.max", maximum(limit))));
    settings.extend(some(memory.reservation).map(|v| set("memory.low", maximum(v))));
    settings
}

fn unified_cpu(cpu: &CpuLimits) -> Vec<Setting> {
    let mut settings = Vec::new();
    settings.extend(cpu.idle.map(|idle| set("cpu.idle", idle)));
    // An idle group has no weight: the kernel refuses to set one.
    let shares = some(cpu.shares).filter(|_| cpu.idle != Some(1));
    settings.extend(shares.map(|shares| set("cpu.weight", weight::of_cpu_shares(shares))));
    if some(cpu.quota).is_some() || some(cpu.period).is_some() {
        let quota = maximum(some(cpu.quota).unwrap_or(-1));
        let period = some(cpu.period).unwrap_or(DEFAULT_PERIOD_US);
        settings.push(set("cpu.max", format!("{quota} {period}")));
    }
    settings.extend(cpu.burst.map(|burst| set("cpu.max.burst", burst)));
    settings
}

fn unified_block_io(limits: &Limits) -> Vec<Setting> {
    let block_io = &limits.block_io;
    // One scheduler has kept the scale of version 1.
    let mut settings = Vec::new();
    settings.extend(some(block_io.weight).map(|value| set("io.bfq.weight", value)));
    settings
        .extend(some(block_io.weight).map(|value| set("io.weight", weight::of_block_io(value))));
    for device in &block_io.weight_device {
        let number = format!("{}:{}", device.major, device.minor);
        let line =
            |value: u16| set("io.weight", format!("{number} {}", weight::of_block_io(value)));
        settings.extend(some(device.weight).map(line));
        let line = |value: u16| shown("io.bfq.weight", format!("{number} {value}"));
        settings.extend(some(device.weight).map(line));
    }
    for (key, devices) in [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ] {
        for device in devices {
            let rate = if device.rate == 0 { "max".into() } else { device.rate.to_string() };
            let value = format!("{}:{} {key}={rate}", device.major, device.minor);
            settings.push(throttle("io.max", device, value));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use kata_spec::{Limits, check_resources};

    use super::{Setting, legacy, unified};

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    fn pairs(settings: &[Setting]) -> Vec<(&str, &str)> {
        settings.iter().map(|s| (s.file.as_str(), s.value.as_str())).collect()
    }

    #[test]
    fn v1_gets_the_period_before_the_quota() {
        let cpu = limits(r#"{"cpu": {"quota": 50, "period": 100, "shares": 0}}"#);
        let expected = [("cpu.cfs_period_us", "100"), ("cpu.cfs_quota_us", "50")];
        assert_eq!(pairs(&legacy("cpu", &cpu, None)), expected);
    }

    #[test]
    fn v1_never_has_a_sum_below_its_part() {
        let memory = limits(r#"{"memory": {"limit": 300, "swap": 400}}"#);
        let order = |in_force| {
            legacy("memory", &memory, in_force).first().map(|setting| setting.file.clone())
        };
        assert_eq!(order(Some(200)).as_deref(), Some("memory.memsw.limit_in_bytes"));
        assert_eq!(order(Some(i64::MAX)).as_deref(), Some("memory.limit_in_bytes"));
        let unlimited = limits(r#"{"memory": {"limit": -1}}"#);
        let expected = [("memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1")];
        assert_eq!(pairs(&legacy("memory", &unlimited, Some(5))), expected);
    }

    #[test]
    fn v2_gets_weight_for_shares_and_max_for_no_limit() {
        let some = limits(r#"{"cpu": {"shares": 1024, "quota": -1}, "memory": {"limit": -1}}"#);
        let expected = [
            ("memory.swap.max", "max"),
            ("memory.max", "max"),
            ("cpu.weight", "100"),
            ("cpu.max", "max 100000"),
        ];
        assert_eq!(pairs(&unified(&some)), expected);
    }

    #[test]
    fn v2_counts_swap_apart_from_memory() {
        let memory = limits(r#"{"memory": {"limit": 1000, "swap": 1500}}"#);
        assert_eq!(pairs(&unified(&memory)), [("memory.swap.max", "500"), ("memory.max", "1000")]);
    }

    #[test]
    fn a_device_has_its_weight_by_each_scheduler() {
        let io =
            limits(r#"{"blockIO": {"weightDevice": [{"major": 7, "minor": 1, "weight": 505}]}}"#);
        let expected = [("blkio.weight_device", "7:1 505"), ("blkio.bfq.weight_device", "7:1 505")];
        assert_eq!(pairs(&legacy("blkio", &io, None)), expected);
        assert_eq!(pairs(&unified(&io)), [("io.weight", "7:1 5000"), ("io.bfq.weight", "7:1 505")]);
    }

    #[test]
    fn throttles_name_device_and_direction() {
        let io = limits(
            r#"{"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}]}}"#,
        );
        assert_eq!(pairs(&unified(&io)), [("io.max", "8:16 wiops=7")]);
        let expected = [("blkio.throttle.write_iops_device", "8:16 7")];
        assert_eq!(pairs(&legacy("blkio", &io, None)), expected);
    }

    #[test]
    fn a_rate_of_zero_takes_one_away() {
        let io = limits(
            r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}}"#,
        );
        let (v1, v2) = (legacy("blkio", &io, None), unified(&io));
        assert_eq!(pairs(&v1), [("blkio.throttle.read_bps_device", "8:0 0")]);
        assert_eq!(pairs(&v2), [("io.max", "8:0 rbps=max")]);
        // The device may have gone.
        assert!(v1[0].lenient && v2[0].lenient);
    }
}
