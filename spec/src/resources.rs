//! `linux.resources` as the host sets it: on the group that `cgroupsPath` names, and on that of VMM and proxy.
//!
//! Zero and the empty string mean "not asked for", as engines write them; -1 means "no limit".

pub(crate) mod unified;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{document::Document, error::SpecError, table};

/// What a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// `memory`.
    #[serde(deserialize_with = "null_is_default")]
    pub memory: MemoryLimits,
    /// `cpu`.
    #[serde(deserialize_with = "null_is_default")]
    pub cpu: CpuLimits,
    /// `pids`.
    #[serde(deserialize_with = "null_is_default")]
    pub pids: PidsLimit,
    /// `blockIO`.
    #[serde(rename = "blockIO", deserialize_with = "null_is_default")]
    pub block_io: BlockIoLimits,
    /// `hugepageLimits`.
    #[serde(deserialize_with = "null_is_default")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// `unified`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "is_default")]
    pub unified: UnifiedLimits,
}

/// What only a file of a group can say, and the VM's is to be told, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnifiedLimits {
    /// Swap beside memory, which may have no limit.
    #[serde(rename = "memory.swap.max", skip_serializing_if = "Option::is_none")]
    pub swap_max: Option<String>,
    /// Nobody has written it: it is what fields had left for swap when a file took the limit on memory away. It holds until
    /// fields speak of swap again.
    #[serde(skip)]
    pub swap_kept: bool,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryLimits {
    /// Of memory.
    pub limit: Option<i64>,
    /// What is left when memory is short.
    pub reservation: Option<i64>,
    /// Of memory and swap together.
    pub swap: Option<i64>,
    /// Of kernel memory; only cgroup v1 of old kernels knows it.
    pub kernel: Option<i64>,
    /// Of TCP buffers, likewise.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100.
    pub swappiness: Option<u64>,
    /// Processes wait instead.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
}

/// CPU time; times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CpuLimits {
    /// Relative weight, as cgroup v1 counts it.
    pub shares: Option<u64>,
    /// In each period.
    pub quota: Option<i64>,
    /// What may be saved up for later.
    pub burst: Option<u64>,
    /// How long a period is.
    pub period: Option<u64>,
    /// 1: only when nobody else wants the CPU.
    pub idle: Option<i64>,
    /// List of CPUs, as in `0-3,6`.
    pub cpus: Option<String>,
    /// List of memory nodes.
    pub mems: Option<String>,
}

/// Tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PidsLimit {
    /// How many.
    pub limit: Option<i64>,
}

/// Block devices of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIoLimits {
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// Against groups below; only cgroup v1 knows it.
    pub leaf_weight: Option<u16>,
    /// Of one device.
    #[serde(deserialize_with = "null_is_default")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes a second.
    #[serde(deserialize_with = "null_is_default")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes a second.
    #[serde(deserialize_with = "null_is_default")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Operations a second.
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "null_is_default")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Operations a second.
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "null_is_default")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightDevice {
    /// Of its number.
    pub major: i64,
    /// Of its number.
    pub minor: i64,
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// Against groups below.
    pub leaf_weight: Option<u16>,
}

/// Rate of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    /// Of its number.
    pub major: i64,
    /// Of its number.
    pub minor: i64,
    /// In each second.
    pub rate: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugepageLimit {
    /// As in `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// A change of a container's resources that was checked.
#[derive(Debug, Clone)]
pub struct CheckedResources {
    /// What the host does.
    pub limits: Limits,
    /// `linux.resources` for the guest, as JSON.
    pub guest: Vec<u8>,
}

/// Checks a change of resources as `linux.resources` is checked.
///
/// # Errors
/// One line that names the field and what is wrong with it.
pub fn check_resources(json: &[u8]) -> Result<CheckedResources, SpecError> {
    check_change(json, &Limits::default())
}

/// Checks a change of resources beside what is in force.
///
/// # Errors
/// As [`check_resources`].
pub fn check_change(json: &[u8], in_force: &Limits) -> Result<CheckedResources, SpecError> {
    let mut document = Document::new("resources".to_owned());
    let mut value = document.parse(json)?;
    let written = unified::limits_swap(&value);
    unified::complete(&mut value, in_force);
    let mut guest = document.object(table::RESOURCES, &value, "")?;
    unified::take(&mut guest);
    let mut limits = limits(&document, &value)?;
    let kept = !written && limits.unified.swap_max.is_some();
    limits.unified.swap_kept |= kept && in_force.unified.swap_kept;
    Ok(CheckedResources { limits, guest: guest.to_string().into_bytes() })
}

/// The limits of a document whose types the table has checked.
pub(crate) fn limits(document: &Document, resources: &Value) -> Result<Limits, SpecError> {
    let written = unified::limits_swap(resources);
    let mut resources = resources.clone();
    unified::take(&mut resources);
    if let Some((file, line)) = unified::devices::left_over(&resources) {
        let field = format!("linux.resources.unified[{file:?}]");
        let why = match unified::devices::not_understood(file, line) {
            Some(word) => format!("{word:?} of {line:?} is not understood"),
            None => format!("{line:?} is about a device of the host, which is not the guest's"),
        };
        return Err(document.refuse(field, why));
    }
    let mut limits: Limits = match resources {
        Value::Null => Limits::default(),
        value => Limits::deserialize(value)
            .map_err(|error| document.wrong("linux.resources", error.to_string()))?,
    };
    limits.unified.swap_kept = !written && limits.unified.swap_max.is_some();
    let memory = &limits.memory;
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    if limit > 0 && swap > 0 && swap < limit {
        let why = "counts memory and swap together, so it can't be below memory.limit";
        return Err(document.wrong("linux.resources.memory.swap", why));
    }
    for (name, value) in
        [("limit", memory.limit), ("reservation", memory.reservation), ("swap", memory.swap)]
    {
        if value.is_some_and(|value| value < -1) {
            let field = format!("linux.resources.memory.{name}");
            return Err(document.wrong(field, "must be bytes, or -1 for no limit"));
        }
    }
    for (name, list) in [("cpus", &limits.cpu.cpus), ("mems", &limits.cpu.mems)] {
        if let Some(list) = list
            && !list.trim().is_empty()
            && parse_list(list).is_none()
        {
            let field = format!("linux.resources.cpu.{name}");
            return Err(document.wrong(field, format!("{list:?} is no list like 0-3,6")));
        }
    }
    Ok(limits)
}

/// The numbers of a list like `0-3,6`; none if it is no such list.
pub fn parse_list(list: &str) -> Option<Vec<u32>> {
    /// More than any kernel can count.
    const MOST: u32 = 8192;
    // Where the longest of the ranges ends that begin at a number: what is named once more takes no more memory.
    let mut ends = [0; MOST as usize];
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        let end = &mut ends[first as usize];
        *end = (last + 1).max(*end);
    }
    let mut end = 0;
    let numbers = (0..).zip(ends).filter_map(|(number, own)| {
        end = own.max(end);
        (number < end).then_some(number)
    });
    Some(numbers.collect())
}

impl Limits {
    /// These limits with a change: what the change does not ask for stays.
    #[must_use]
    pub fn changed(&self, change: &Self) -> Self {
        let (old, new) = (self, change);
        Self {
            memory: old.memory.changed(&new.memory),
            cpu: old.cpu.changed(&new.cpu),
            pids: PidsLimit { limit: set(new.pids.limit).or(old.pids.limit) },
            block_io: old.block_io.changed(&new.block_io),
            hugepage_limits: list(&old.hugepage_limits, &new.hugepage_limits),
            unified: old.unified.changed(new),
        }
    }

    /// These limits, said so that they undo `newer`: what these do not limit is unlimited.
    ///
    /// What only `newer` has of devices, reservation, lists of processors and huge pages stays in the container's own group, most
    /// of it because no value says that there is none. It holds for the process that stands for the container there; the VM's
    /// group is held to what is counted of all containers.
    #[must_use]
    pub fn over(&self, newer: &Self) -> Self {
        fn back<T: Default + PartialEq>(old: Option<T>, new: Option<T>, none: T) -> Option<T> {
            set(old).or(new.map(|_| none))
        }
        let mut limits = self.clone();
        limits.memory.limit = back(self.memory.limit, newer.memory.limit, -1);
        limits.memory.swap = back(self.memory.swap, newer.memory.swap, -1);
        limits.cpu.shares = back(self.cpu.shares, newer.cpu.shares, DEFAULT_SHARES);
        limits.cpu.quota = back(self.cpu.quota, newer.cpu.quota, -1);
        limits.cpu.period = back(self.cpu.period, newer.cpu.period, DEFAULT_PERIOD_US);
        limits.cpu.burst = back(self.cpu.burst, newer.cpu.burst, 0);
        limits.cpu.idle = back(self.cpu.idle, newer.cpu.idle, 0);
        limits.pids.limit = back(self.pids.limit, newer.pids.limit, -1);
        limits
    }

    /// CPUs that quota and list leave a container: rounded up, none when neither says anything.
    pub fn cpus(&self) -> Option<u32> {
        let quota = self.cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|q| *q > 0);
        let period = set(self.cpu.period).unwrap_or(DEFAULT_PERIOD_US);
        let by_quota = quota.map(|quota| u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX));
        let listed = self.cpu.cpus.as_deref().and_then(parse_list);
        let by_list = listed.and_then(|cpus| u32::try_from(cpus.len()).ok()).filter(|n| *n > 0);
        by_quota.into_iter().chain(by_list).min()
    }

    /// Bytes of swap beside memory, by `unified`, which is written last, or else by the limits of both; none when there is no
    /// limit.
    pub fn swap_bytes(&self) -> Option<u64> {
        if let Some(text) = &self.unified.swap_max {
            return unified::swap(text);
        }
        match (self.memory.swap, self.memory.limit) {
            (Some(swap @ 1..), Some(limit @ 1..)) => u64::try_from(swap - limit).ok(),
            _ => None,
        }
    }

    /// Bytes of memory; none when there is no limit.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
    }
}

/// What the kernel takes where nobody says.
pub const DEFAULT_PERIOD_US: u64 = 100_000;

/// What a group has where nobody says.
const DEFAULT_SHARES: u64 = 1024;

impl MemoryLimits {
    fn changed(&self, new: &Self) -> Self {
        let swap = match (set(new.swap), set(new.limit)) {
            // A container without a limit on memory has none on swap either.
            (None, Some(-1)) => Some(-1),
            (swap, _) => swap.or(self.swap),
        };
        Self {
            limit: set(new.limit).or(self.limit),
            reservation: set(new.reservation).or(self.reservation),
            swap,
            kernel: set(new.kernel).or(self.kernel),
            kernel_tcp: set(new.kernel_tcp).or(self.kernel_tcp),
            swappiness: new.swappiness.or(self.swappiness),
            disable_oom_killer: new.disable_oom_killer.or(self.disable_oom_killer),
        }
    }
}

impl CpuLimits {
    fn changed(&self, new: &Self) -> Self {
        let text = |new: &Option<String>, old: &Option<String>| {
            new.clone().filter(|text| !text.is_empty()).or_else(|| old.clone())
        };
        Self {
            shares: set(new.shares).or(self.shares),
            quota: set(new.quota).or(self.quota),
            burst: new.burst.or(self.burst),
            period: set(new.period).or(self.period),
            idle: new.idle.or(self.idle),
            cpus: text(&new.cpus, &self.cpus),
            mems: text(&new.mems, &self.mems),
        }
    }
}

impl BlockIoLimits {
    fn changed(&self, new: &Self) -> Self {
        Self {
            weight: set(new.weight).or(self.weight),
            leaf_weight: set(new.leaf_weight).or(self.leaf_weight),
            weight_device: list(&self.weight_device, &new.weight_device),
            throttle_read_bps_device: list(
                &self.throttle_read_bps_device,
                &new.throttle_read_bps_device,
            ),
            throttle_write_bps_device: list(
                &self.throttle_write_bps_device,
                &new.throttle_write_bps_device,
            ),
            throttle_read_iops_device: list(
                &self.throttle_read_iops_device,
                &new.throttle_read_iops_device,
            ),
            throttle_write_iops_device: list(
                &self.throttle_write_iops_device,
                &new.throttle_write_iops_device,
            ),
        }
    }
}

/// A number that asks for something.
fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

fn list<T: Clone>(old: &[T], new: &[T]) -> Vec<T> {
    if new.is_empty() { old.to_vec() } else { new.to_vec() }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{Limits, check_resources, parse_list};

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    #[test]
    fn a_list_is_its_numbers() {
        assert_eq!(parse_list("0-2,7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list(" 1 , 1\n"), Some(vec![1]));
        assert_eq!(parse_list("4-5,0-2,0,1-2,8191"), Some(vec![0, 1, 2, 4, 5, 8191]));
        for bad in ["x", "3-1", "-1", "0-999999999"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_list_takes_no_more_memory_for_saying_things_twice() {
        // Each number noted, these would be 24 GiB.
        let long = "0-8191,".repeat(800_000);
        assert_eq!(parse_list(&long).map(|numbers| numbers.len()), Some(8192));
    }

    #[test]
    fn cpus_are_rounded_up_and_the_smaller_of_both_counts() {
        assert_eq!(limits(r#"{"cpu": {"quota": 150000}}"#).cpus(), Some(2));
        assert_eq!(limits(r#"{"cpu": {"quota": 10, "period": 1000}}"#).cpus(), Some(1));
        let both = r#"{"cpu": {"quota": 400000, "period": 100000, "cpus": "0-1"}}"#;
        assert_eq!(limits(both).cpus(), Some(2));
        assert_eq!(limits(r#"{"cpu": {"quota": -1}}"#).cpus(), None);
    }

    #[test]
    fn what_a_change_does_not_ask_for_stays() {
        let old = limits(r#"{"memory": {"limit": 100, "swap": 200}, "cpu": {"shares": 5}}"#);
        let new =
            old.changed(&limits(r#"{"memory": {"limit": 0, "swap": 300}, "pids": {"limit": 9}}"#));
        assert_eq!((new.memory.limit, new.memory.swap), (Some(100), Some(300)));
        assert_eq!((new.cpu.shares, new.pids.limit), (Some(5), Some(9)));
        let unlimited = new.changed(&limits(r#"{"memory": {"limit": -1}}"#));
        assert_eq!((unlimited.memory_bytes(), unlimited.memory.swap), (None, Some(-1)));
    }

    #[test]
    fn what_a_refused_change_has_set_is_taken_back() {
        let old = limits(r#"{"cpu": {"shares": 5, "idle": 1}, "pids": {"limit": 0}}"#);
        let change = r#"{"memory": {"limit": 7}, "pids": {"limit": 8},
            "cpu": {"shares": 9, "quota": 10, "period": 20, "burst": 3, "idle": 0}}"#;
        let back = old.over(&old.changed(&limits(change)));
        assert_eq!(
            (back.memory.limit, back.memory.swap, back.pids.limit),
            (Some(-1), None, Some(-1))
        );
        let cpu = back.cpu;
        assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(5), Some(-1), Some(100_000)));
        assert_eq!((cpu.burst, cpu.idle), (Some(0), Some(1)));
        let unset = limits("{}");
        assert_eq!(unset.over(&limits(r#"{"cpu": {"shares": 9}}"#)).cpu.shares, Some(1024));
        assert_eq!(unset.over(&unset), unset);
    }

    #[test]
    fn absurd_values_are_refused_by_name() {
        for (json, word) in [
            (r#"{"memory": {"limit": 10, "swap": 5}}"#, "memory.swap"),
            (r#"{"memory": {"limit": -5}}"#, "memory.limit"),
            (r#"{"cpu": {"cpus": "all"}}"#, "cpu.cpus"),
            (r#"{"cpu": {"shares": -1}}"#, "cpu.shares"),
            (r#"{"blockIO": {"weight": 70000}}"#, "blockIO.weight"),
            ("[]", "document"),
            ("{", "resources"),
        ] {
            let error = check_resources(json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(word), "{json}: {error}");
        }
    }
}
