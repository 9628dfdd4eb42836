//! What a container uses, from the files of its group in the guest, in the two forms that engines read.
//!
//! The files are a guest's words: of each a number is taken, of lists a bounded part, and nothing else is kept.

use std::{collections::HashMap, path::Path};

use kata_engine_api::containerd::{any::Any, cgroups_v1 as v1, cgroups_v2 as v2};
use protobuf::MessageFull;

/// Most devices and page sizes that are told; a guest that lists more is lying.
const MOST: usize = 64;

/// What control groups v1 say where there is no limit; engines compare with it.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

/// The form that the engines of this host read: they take that of the host's own control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Control groups v1, and hybrid hosts.
    V1,
    /// Control groups v2.
    V2,
}

impl Form {
    /// That of this host: v2 only where nothing else is mounted.
    pub fn of_host() -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        if unified { Self::V2 } else { Self::V1 }
    }
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics(v2::Metrics);

impl Statistics {
    /// Nothing is used, and nothing limited.
    pub fn none() -> Self {
        Self::parse(&HashMap::new())
    }

    /// From the files of a group of v2, by name.
    pub fn parse(files: &HashMap<String, String>) -> Self {
        let files = Files(files);
        Self(v2::Metrics {
            pids: Some(v2::PidsStat {
                current: files.number("pids.current"),
                // What engines take for no limit.
                limit: files.limit("pids.max").unwrap_or(0),
                ..Default::default()
            })
            .into(),
            cpu: Some(cpu(&files)).into(),
            memory: Some(memory(&files)).into(),
            memory_events: Some(v2::MemoryEvents {
                low: files.flat("memory.events", "low"),
                high: files.flat("memory.events", "high"),
                max: files.flat("memory.events", "max"),
                oom: files.flat("memory.events", "oom"),
                oom_kill: files.flat("memory.events", "oom_kill"),
                ..Default::default()
            })
            .into(),
            io: Some(v2::IOStat {
                usage: io(&files),
                psi: files.pressure("io.pressure").into(),
                ..Default::default()
            })
            .into(),
            hugetlb: huge_pages(&files),
            ..Default::default()
        })
    }

    /// Counts what another container uses too: processor time, memory, processes, and those that the OOM killer took. The
    /// figures are guests', and may be anything.
    pub fn add(&mut self, other: &Self) {
        let (sum, other) = (&mut self.0, &other.0);
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut sum.pids.mut_or_insert_default().current, other.pids.current);
        let cpu = sum.cpu.mut_or_insert_default();
        add(&mut cpu.usage_usec, other.cpu.usage_usec);
        add(&mut cpu.user_usec, other.cpu.user_usec);
        add(&mut cpu.system_usec, other.cpu.system_usec);
        add(&mut cpu.nr_throttled, other.cpu.nr_throttled);
        add(&mut cpu.throttled_usec, other.cpu.throttled_usec);
        let memory = sum.memory.mut_or_insert_default();
        add(&mut memory.usage, other.memory.usage);
        add(&mut memory.anon, other.memory.anon);
        add(&mut memory.file, other.memory.file);
        add(&mut memory.inactive_file, other.memory.inactive_file);
        add(&mut memory.pgfault, other.memory.pgfault);
        add(&mut memory.pgmajfault, other.memory.pgmajfault);
        let events = sum.memory_events.mut_or_insert_default();
        add(&mut events.oom_kill, other.memory_events.oom_kill);
    }

    /// As the Task service answers.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn to_any(&self, form: Form) -> protobuf::Result<Any> {
        match form {
            Form::V1 => any(&self.to_v1()),
            Form::V2 => any(&self.0),
        }
    }

    fn to_v1(&self) -> v1::Metrics {
        const NS: u64 = 1000;
        let v2::Metrics { pids, cpu, hugetlb, memory_events, .. } = &self.0;
        let usage = v1::CPUUsage {
            total: cpu.usage_usec.saturating_mul(NS),
            kernel: cpu.system_usec.saturating_mul(NS),
            user: cpu.user_usec.saturating_mul(NS),
            ..Default::default()
        };
        let throttling = v1::Throttle {
            periods: cpu.nr_periods,
            throttled_periods: cpu.nr_throttled,
            throttled_time: cpu.throttled_usec.saturating_mul(NS),
            ..Default::default()
        };
        let hugetlb = hugetlb.iter().map(|huge| v1::HugetlbStat {
            usage: huge.current,
            max: huge.max,
            pagesize: huge.pagesize.clone(),
            ..Default::default()
        });
        v1::Metrics {
            pids: Some(v1::PidsStat {
                current: pids.current,
                limit: pids.limit,
                ..Default::default()
            })
            .into(),
            cpu: Some(v1::CPUStat {
                usage: Some(usage).into(),
                throttling: Some(throttling).into(),
                ..Default::default()
            })
            .into(),
            memory: Some(legacy_memory(&self.0.memory, memory_events.max)).into(),
            blkio: Some(legacy_io(&self.0.io.usage)).into(),
            hugetlb: hugetlb.collect(),
            memory_oom_control: Some(v1::MemoryOomControl {
                oom_kill: memory_events.oom_kill,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }
}

fn any<M: MessageFull>(message: &M) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: message.write_to_bytes()?,
        ..Default::default()
    })
}

/// The files of a group.
struct Files<'a>(&'a HashMap<String, String>);

impl<'a> Files<'a> {
    fn text(&self, file: &str) -> &'a str {
        self.0.get(file).map_or("", String::as_str)
    }

    fn number(&self, file: &str) -> u64 {
        self.text(file).trim().parse().unwrap_or(0)
    }

    /// None when there is no limit.
    fn limit(&self, file: &str) -> Option<u64> {
        self.text(file).trim().parse().ok()
    }

    /// The value of a key.
    fn flat(&self, file: &str, key: &str) -> u64 {
        let mut lines = self.text(file).lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    fn pressure(&self, file: &str) -> Option<v2::PSIStats> {
        let line = |kind: &str| {
            let line = self.text(file).lines().find_map(|line| line.strip_prefix(kind))?;
            let value = |key: &str| {
                line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            };
            let average = |key| value(key).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
            Some(v2::PSIData {
                avg10: average("avg10"),
                avg60: average("avg60"),
                avg300: average("avg300"),
                total: value("total").and_then(|total| total.parse().ok()).unwrap_or(0),
                ..Default::default()
            })
        };
        let some = line("some")?;
        Some(v2::PSIStats {
            some: Some(some).into(),
            full: line("full").into(),
            ..Default::default()
        })
    }
}

fn cpu(files: &Files) -> v2::CPUStat {
    let value = |key| files.flat("cpu.stat", key);
    v2::CPUStat {
        usage_usec: value("usage_usec"),
        user_usec: value("user_usec"),
        system_usec: value("system_usec"),
        nr_periods: value("nr_periods"),
        nr_throttled: value("nr_throttled"),
        throttled_usec: value("throttled_usec"),
        psi: files.pressure("cpu.pressure").into(),
        ..Default::default()
    }
}

fn memory(files: &Files) -> v2::MemoryStat {
    let value = |key| files.flat("memory.stat", key);
    v2::MemoryStat {
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        anon_thp: value("anon_thp"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        workingset_refault: value("workingset_refault_anon")
            .saturating_add(value("workingset_refault_file")),
        workingset_activate: value("workingset_activate_anon")
            .saturating_add(value("workingset_activate_file")),
        workingset_nodereclaim: value("workingset_nodereclaim"),
        pgrefill: value("pgrefill"),
        pgscan: value("pgscan"),
        pgsteal: value("pgsteal"),
        pgactivate: value("pgactivate"),
        pgdeactivate: value("pgdeactivate"),
        pglazyfree: value("pglazyfree"),
        pglazyfreed: value("pglazyfreed"),
        thp_fault_alloc: value("thp_fault_alloc"),
        thp_collapse_alloc: value("thp_collapse_alloc"),
        usage: files.number("memory.current"),
        usage_limit: files.limit("memory.max").unwrap_or(u64::MAX),
        swap_usage: files.number("memory.swap.current"),
        swap_limit: files.limit("memory.swap.max").unwrap_or(u64::MAX),
        max_usage: files.number("memory.peak"),
        swap_max_usage: files.number("memory.swap.peak"),
        psi: files.pressure("memory.pressure").into(),
        ..Default::default()
    }
}

fn io(files: &Files) -> Vec<v2::IOEntry> {
    let entry = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let value = |key: &str| {
            let mut words = rest.split_whitespace();
            let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(v2::IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: value("rbytes"),
            wbytes: value("wbytes"),
            rios: value("rios"),
            wios: value("wios"),
            ..Default::default()
        })
    };
    files.text("io.stat").lines().filter_map(entry).take(MOST).collect()
}

fn huge_pages(files: &Files) -> Vec<v2::HugeTlbStat> {
    let sizes = files.0.keys().filter_map(|name| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        size.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some(size)
    });
    let mut sizes: Vec<&str> = sizes.filter(|size| size.len() <= 16).take(MOST).collect();
    sizes.sort_unstable();
    let page = |size: &str| v2::HugeTlbStat {
        current: files.number(&format!("hugetlb.{size}.current")),
        max: files.limit(&format!("hugetlb.{size}.max")).unwrap_or(u64::MAX),
        pagesize: size.to_owned(),
        ..Default::default()
    };
    sizes.into_iter().map(page).collect()
}

fn legacy_memory(memory: &v2::MemoryStat, failures: u64) -> v1::MemoryStat {
    let both = |memory: u64, swap: u64| memory.saturating_add(swap);
    let entry = |limit, usage, max, failcnt| {
        Some(v1::MemoryEntry { limit, usage, max, failcnt, ..Default::default() }).into()
    };
    let limit = memory.usage_limit.min(UNLIMITED);
    let swap_limit = both(memory.usage_limit, memory.swap_limit).min(UNLIMITED);
    v1::MemoryStat {
        cache: memory.file,
        rss: memory.anon,
        rss_huge: memory.anon_thp,
        mapped_file: memory.file_mapped,
        dirty: memory.file_dirty,
        writeback: memory.file_writeback,
        pg_fault: memory.pgfault,
        pg_maj_fault: memory.pgmajfault,
        inactive_anon: memory.inactive_anon,
        active_anon: memory.active_anon,
        inactive_file: memory.inactive_file,
        active_file: memory.active_file,
        unevictable: memory.unevictable,
        hierarchical_memory_limit: limit,
        hierarchical_swap_limit: swap_limit,
        total_cache: memory.file,
        total_rss: memory.anon,
        total_rss_huge: memory.anon_thp,
        total_mapped_file: memory.file_mapped,
        total_dirty: memory.file_dirty,
        total_writeback: memory.file_writeback,
        total_pg_fault: memory.pgfault,
        total_pg_maj_fault: memory.pgmajfault,
        total_inactive_anon: memory.inactive_anon,
        total_active_anon: memory.active_anon,
        total_inactive_file: memory.inactive_file,
        total_active_file: memory.active_file,
        total_unevictable: memory.unevictable,
        usage: entry(limit, memory.usage, memory.max_usage, failures),
        // v1 counts memory and swap together.
        swap: entry(
            swap_limit,
            both(memory.usage, memory.swap_usage),
            both(memory.max_usage, memory.swap_max_usage),
            0,
        ),
        kernel: entry(UNLIMITED, both(memory.slab, memory.kernel_stack), 0, 0),
        kernel_tcp: entry(UNLIMITED, memory.sock, 0, 0),
        ..Default::default()
    }
}

fn legacy_io(entries: &[v2::IOEntry]) -> v1::BlkIOStat {
    let lines = |read: fn(&v2::IOEntry) -> u64, write: fn(&v2::IOEntry) -> u64| {
        let each = |entry: &v2::IOEntry| {
            let (reads, writes) = (read(entry), write(entry));
            [("Read", reads), ("Write", writes), ("Total", reads.saturating_add(writes))].map(
                |(op, value)| v1::BlkIOEntry {
                    op: op.into(),
                    major: entry.major,
                    minor: entry.minor,
                    value,
                    ..Default::default()
                },
            )
        };
        entries.iter().flat_map(each).collect()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: lines(|entry| entry.rbytes, |entry| entry.wbytes),
        io_serviced_recursive: lines(|entry| entry.rios, |entry| entry.wios),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use kata_engine_api::containerd::{cgroups_v1, cgroups_v2};
    use protobuf::Message;

    use super::{Form, Statistics};

    fn statistics() -> Statistics {
        let files = [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_throttled 2\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "67108864\n"),
            ("memory.stat", "anon 4096\nfile 2048\ninactive_file 1024\n"),
            ("memory.events", "low 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nrubbish\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.../../x.current", "5\n"),
        ];
        let files: HashMap<String, String> =
            files.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        Statistics::parse(&files)
    }

    #[test]
    fn v2_is_what_the_files_say() {
        let any = statistics().to_any(Form::V2).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = cgroups_v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (8192, 64 << 20));
        assert_eq!((metrics.memory.inactive_file, metrics.memory_events.oom_kill), (1024, 1));
        assert_eq!((metrics.cpu.psi.some.avg10, metrics.cpu.psi.some.total), (1.5, 77));
        let [io] = &metrics.io.usage[..] else { panic!("{:?}", metrics.io) };
        assert_eq!((io.major, io.rbytes, io.wios), (254, 10, 2));
        let [huge] = &metrics.hugetlb[..] else { panic!("{:?}", metrics.hugetlb) };
        assert_eq!((huge.pagesize.as_str(), huge.max), ("2MB", u64::MAX));
    }

    #[test]
    fn v1_says_the_same_in_its_own_units() {
        let any = statistics().to_any(Form::V1).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = cgroups_v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 1_500_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.failcnt), (8192, 4));
        assert_eq!(metrics.memory.total_inactive_file, 1024);
        assert_eq!(metrics.memory_oom_control.oom_kill, 1);
        assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 3);
    }

    #[test]
    fn a_guest_that_says_rubbish_has_used_nothing() {
        let rubbish = [("memory.stat", "\u{0}\nanon -5"), ("io.stat", ":::"), ("cpu.stat", "")];
        let files = rubbish.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
        let Statistics(metrics) = Statistics::parse(&files);
        assert_eq!((metrics.memory.anon, metrics.io.usage.len()), (0, 0));
    }
}
