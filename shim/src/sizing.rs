//! How large a VM is, from what its containers ask for.
//!
//! Memory of the VM can't grow yet, so what is decided here holds for its life. Processors can: the VM has as many as may
//! ever be needed, and the guest brings up those that are.

mod ceiling;
mod told;

use std::{fs, num::NonZeroU8, thread};

use kata_config::Config;
use kata_engine_api::handover::FailureKind;
use kata_hypervisor::MemoryMib;
use kata_protocol::reserve;
use kata_spec::Limits;

pub use self::{ceiling::Ceiling, told::pod_limits};
use crate::failure::Refusal;

const MIB: u64 = 1024 * 1024;

/// What the guest's kernel needs of any memory, beside what containers leave to the guest.
const KERNEL_MIB: u64 = 40;

/// The kernel's table of pages takes a 64th of what it describes, ...
const PAGE_TABLE_SHARE: u64 = 64;

/// ... and its hash tables up to a 341st: their entries are a power of two, which limits often are, and guests then a little more.
const HASH_TABLE_SHARE: u64 = 256;

/// The least for a lone container, whatever its limit is.
const LONE_MIB: u64 = 128;

/// The least for a pod: nobody says how much those of its containers will need that have no limit.
const POD_MIB: u32 = 512;

/// Shares of one processor, as kubelets count.
const SHARES: u64 = 1024;

/// Note on memory that the VM does not have.
pub const MEMORY_NOTE: &str = "memoryNote";

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
    /// Bytes that a limit on memory may be of a container that comes later, though the VM has less.
    pub promised: u64,
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
    /// What its group on the host allows.
    pub ceiling: Option<&'a Ceiling>,
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

    /// What there is of what is wanted.
    fn hold(
        &self,
        wanted: u64,
        notes: &mut Vec<(&'static str, String)>,
    ) -> Result<MemoryMib, Refusal> {
        let memory = match self.ceiling {
            Some(ceiling) => {
                let memory = ceiling.hold(wanted, self.promised_mib(wanted, ceiling))?;
                notes.extend(ceiling.note(memory, wanted).map(|note| (MEMORY_NOTE, note)));
                memory
            }
            None => wanted,
        };
        Ok(MemoryMib(u32::try_from(memory).unwrap_or(u32::MAX)))
    }

    /// What somebody counts on, of so much that is wanted: what a person has set, or what was told. The least sizes are nobody's, but
    /// a limit on the group of a pod is what its containers have together, whether that was told or not.
    fn promised_mib(&self, wanted: u64, ceiling: &Ceiling) -> u64 {
        match self.limits.memory_bytes() {
            _ if self.memory_is_set => wanted,
            Some(bytes) => needed_mib(bytes.div_ceil(MIB)),
            None if self.is_pod => ceiling.limit_mib(),
            None => 0,
        }
    }
}

/// The size of a VM.
pub fn size(config: &Config, purpose: Purpose<'_>, host: Capacity) -> Result<Size, Refusal> {
    let (mut notes, limits) = (Vec::new(), purpose.limits);
    let memory = memory(config, limits, host, &mut notes)?;
    let least = u64::from(purpose.least_mib(config)).min(host.memory_mib);
    let wanted = least.max(memory.0.into());
    let memory = purpose.hold(wanted, &mut notes)?;
    // A limit beyond the sum that was told has been changed since; and no limit makes a VM larger that its group holds down.
    let is_told = purpose.is_pod && limits.memory_bytes().is_some();
    let promised = if is_told || u64::from(memory.0) < wanted { u64::MAX } else { 0 };
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
    let vcpus = count(wanted.min(max));
    Ok(Size { memory, vcpus, max_vcpus: count(max), promised, notes })
}

/// Refuses a container that its limit promises more than the VM has, which can't grow, unless so many bytes were promised before, by
/// an update or as [`Size::promised`] says. A limit above what the host has is none.
pub fn must_fit(
    limits: &Limits,
    (vm, promised): (MemoryMib, u64),
    host: Capacity,
) -> Result<(), Refusal> {
    let bytes = limits.memory_bytes().unwrap_or_default();
    let limit = bytes.div_ceil(MIB);
    if limit <= u64::from(vm.0) || bytes <= promised || limit > host.memory_mib {
        return Ok(());
    }
    let message = format!(
        "the container's memory limit of {limit} MiB does not fit into the pod's VM of {vm}, which can't grow: have the pod's \
         resources told when it is made (kubelets do), or set its annotation io.katacontainers.vm.memory_mib"
    );
    Err(Refusal::new(FailureKind::InvalidArgument, message))
}

/// What `state` says of a container whose limit is more than the VM has.
pub fn excess_note(limits: &Limits, vm: MemoryMib) -> Option<String> {
    let limit = limits.memory_bytes()? / MIB;
    (limit > vm.0.into()).then(|| {
        format!(
            "the limit of {limit} MiB is more than the VM's {vm}, which can't grow: the container can use what the VM has"
        )
    })
}

/// Processors that are brought up for a container of a pod; none when it asks for none. A kubelet that hands processors out gives each
/// container that has none of its own a list of all the rest: where there is no quota, the shares of all say how many are asked for.
pub fn member_cpus(limits: &Limits, shares_of_all: u64) -> Option<u32> {
    let has_quota = limits.cpu.quota.is_some_and(|quota| quota > 0);
    let own = limits.cpu.shares.filter(|shares| *shares > 0 && !has_quota);
    let shares = own.map(|own| own.max(shares_of_all));
    let asked = shares.map(|shares| u32::try_from(shares.div_ceil(SHARES)).unwrap_or(u32::MAX));
    limits.cpus().map(|cpus| cpus.min(asked.unwrap_or(u32::MAX)))
}

/// What a VM has of which so much is the containers' own.
fn vm_mib(limit_mib: u64, host: Capacity) -> u64 {
    needed_mib(limit_mib).clamp(LONE_MIB, host.memory_mib.max(LONE_MIB))
}

/// What it needs for that.
fn needed_mib(limit_mib: u64) -> u64 {
    let tables = limit_mib / PAGE_TABLE_SHARE + limit_mib / HASH_TABLE_SHARE;
    let reserved = reserve::memory(limit_mib.saturating_mul(MIB)) / MIB;
    limit_mib.saturating_add(KERNEL_MIB + tables + reserved)
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
        return Ok(MemoryMib(u32::try_from(vm_mib(limit, host)).unwrap_or(u32::MAX)));
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
        notes.push((MEMORY_NOTE, note));
    }
    Ok(MemoryMib(configured))
}

#[cfg(test)]
mod tests {
    use kata_config::Config;
    use kata_hypervisor::Accelerator;
    use kata_sandbox::cgroup::MemoryCeiling;
    use kata_spec::{Limits, check_resources};

    use super::{
        Capacity, Ceiling, MIB, MemoryMib, POD_MIB, Purpose, Refusal, Size, excess_note,
        member_cpus, must_fit, needed_mib, pod_limits, reserve, size,
    };

    const HOST: Capacity = Capacity { memory_mib: 8192, cpus: 4 };

    fn limits(json: &str) -> Limits {
        check_resources(json.as_bytes()).unwrap().limits
    }

    fn alone(limits: &Limits) -> Purpose<'_> {
        Purpose { limits, is_pod: false, memory_is_set: false, ceiling: None }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let limits = |mib: u64| limits(&format!(r#"{{"memory": {{"limit": {}}}}}"#, mib * MIB));
        let fits = |mib: u64| must_fit(&limits(mib), (MemoryMib(512), 0), HOST);
        assert!(fits(512).is_ok() && fits(8193).is_ok());
        let message = fits(513).unwrap_err().message;
        assert!(message.contains("513 MiB") && message.contains("512 MiB"), "{message}");
        assert!(must_fit(&Limits::default(), (MemoryMib(1), 0), HOST).is_ok());
        // By an update.
        let promised = |mib: u64| must_fit(&limits(mib), (MemoryMib(512), 600 * MIB), HOST);
        assert!(promised(600).is_ok() && promised(601).is_err());
        let note = excess_note(&limits(600), MemoryMib(512)).unwrap();
        assert!(note.contains("600 MiB") && note.contains("512 MiB"), "{note}");
        assert_eq!(excess_note(&limits(512), MemoryMib(512)), None);
    }

    fn memory(limit: u64) -> u32 {
        let limits = limits(&format!(r#"{{"memory": {{"limit": {limit}}}}}"#));
        size(&Config::default(), alone(&limits), HOST).unwrap().memory.0
    }

    #[test]
    fn a_limit_is_the_containers_own() {
        assert_eq!(memory(256 * MIB), 256 + 4 + 1 + 64);
        assert_eq!(memory(1), 128);
        assert_eq!(memory(8192 * MIB), 8192);
    }

    #[test]
    fn the_guest_leaves_a_limit_whole_whatever_its_size() {
        for limit in [64_u64, 1000, 8 << 10, 64 << 10, 1 << 20] {
            let vm = needed_mib(limit);
            // What a guest's kernel says that it has in all, and what its agent lets containers have of that.
            let total = vm - 20 - vm / 64 - vm / 341;
            let theirs = total - reserve::memory(total * MIB).div_ceil(MIB);
            assert!((limit..limit + 24 + limit / 512).contains(&theirs), "{theirs} for {limit}");
        }
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
        assert_eq!((told.memory.0, told.vcpus.get()), (512 + 8 + 2 + 64, 2));
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

    /// Memory of a pod's VM whose containers may have so much, in a group with a limit, by its accelerator; MiB.
    fn held(told: Option<u64>, group: u64, accelerator: Accelerator) -> Result<Size, Refusal> {
        let limit = MemoryCeiling { file: "/pod/memory.max".into(), bytes: group * MIB };
        let ceiling = Ceiling::new(limit, accelerator);
        let told = told.map(|mib| limits(&format!(r#"{{"memory": {{"limit": {}}}}}"#, mib * MIB)));
        let limits = told.unwrap_or_default();
        let pod = Purpose { is_pod: true, ceiling: Some(&ceiling), ..alone(&limits) };
        size(&Config::default(), pod, HOST)
    }

    #[test]
    fn a_vm_fits_into_its_group_with_vmm_and_proxy() {
        use Accelerator::{Kvm, Tcg};
        // The overhead of a runtime class of 176 MiB is in it.
        for (told, group, accelerator, memory) in [
            (Some(512), 512 + 176, Kvm, 512 + 8 + 2 + 64),
            (Some(6144), 6144 + 176, Kvm, (6320 - 64) * 512 / 515),
            (Some(64), 64 + 176, Kvm, 64 + 1 + 64),
            (Some(64), 64 + 176, Tcg, 112 * 512 / 515),
            (Some(100), 1000, Tcg, 512),
            (Some(100), 700, Tcg, 444 * 512 / 515),
            // What nobody was promised leaves VMM and proxy all that they may take.
            (Some(10), 186, Kvm, 10 + 64),
            // The limit is the sum.
            (None, 276, Kvm, 212 * 512 / 515),
            (None, 256, Tcg, 128 * 512 / 515),
            (None, 2048, Kvm, 512),
        ] {
            let size = held(told, group, accelerator).unwrap();
            assert_eq!(size.memory, MemoryMib(memory), "{told:?} in {group}");
            let wanted = told.map_or(512, |told| needed_mib(told).max(512));
            let noted = size.notes.first().map(|(_, note)| note.contains(&format!("not {wanted}")));
            assert_eq!(noted, (wanted > memory.into()).then_some(true), "{:?}", size.notes);
        }
    }

    #[test]
    fn a_larger_limit_is_taken_where_it_could_not_have_made_a_larger_vm() {
        let takes = |size: &Size, mib: u64| {
            let limits = limits(&format!(r#"{{"memory": {{"limit": {}}}}}"#, mib * MIB));
            must_fit(&limits, (size.memory, size.promised), HOST).is_ok()
        };
        // Nobody has told a sum, and the group has no room beside the container's.
        let size = held(None, 256, Accelerator::Kvm).unwrap();
        assert!(size.memory.0 < 256 && takes(&size, 256) && takes(&size, 300), "{size:?}");
        let size = held(None, 4096, Accelerator::Kvm).unwrap();
        assert!(takes(&size, 512) && !takes(&size, 600), "{size:?}");
        // One that was down when its limit was changed, of which no update tells.
        let size = held(Some(400), 4096, Accelerator::Kvm).unwrap();
        assert!(takes(&size, 600), "{size:?}");
    }

    #[test]
    fn a_group_that_no_vm_fits_into_is_refused_by_its_limit() {
        let message = held(Some(64), 100, Accelerator::Kvm).unwrap_err().message;
        let words = ["/pod/memory.max allows 100 MiB", "needs 129 MiB", "64 for", "runtime class"];
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert_eq!(held(None, 129, Accelerator::Kvm).unwrap().memory, MemoryMib(64));
        assert!(held(None, 128, Accelerator::Kvm).is_err());
        assert!(held(None, 0, Accelerator::Tcg).is_err());
    }

    #[test]
    fn a_list_asks_for_no_more_processors_in_a_pod_than_shares_do() {
        let beside = |json: &str, shares: u64| {
            member_cpus(&limits(&format!(r#"{{"cpu": {{{json}}}}}"#)), shares)
        };
        let cpus = |json: &str| beside(json, 0);
        // Of whatever is left, of processors of its own, and by hand.
        assert_eq!(cpus(r#""cpus": "0-61", "shares": 2"#), Some(1));
        assert_eq!(cpus(r#""cpus": "0-61", "shares": 1536"#), Some(2));
        assert_eq!(cpus(r#""cpus": "2-5", "shares": 4096"#), Some(4));
        assert_eq!(cpus(r#""cpus": "2-5", "shares": 4096, "quota": -1"#), Some(4));
        assert_eq!(cpus(r#""cpus": "0-3""#), Some(4));
        // A quota is said of the same container, and shares may be less.
        assert_eq!(cpus(r#""cpus": "0-61", "shares": 512, "quota": 250000"#), Some(3));
        assert_eq!(cpus(r#""shares": 4096"#), None);
        // They run beside each other.
        let list = r#""cpus": "0-5""#;
        assert_eq!(beside(&format!(r#"{list}, "shares": 2048"#), 4 * 2048), Some(6));
        assert_eq!(beside(&format!(r#"{list}, "shares": 512"#), 2048 + 512), Some(3));
        assert_eq!(beside(&format!(r#"{list}, "quota": 250000, "shares": 2"#), 8192), Some(3));
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
