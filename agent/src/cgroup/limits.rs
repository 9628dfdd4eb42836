//! Limits of the OCI specification in the words of cgroup v2.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use kata_protocol::weight;

use super::processors;
use crate::{
    order::{Failure, Step},
    spec::{Cpu, Memory, Resources},
};

/// The limits of a group.
#[derive(Debug)]
pub struct Limits(pub(super) PathBuf);

impl Limits {
    /// Changes limits; those that are not named stay. Blocks as long as the kernel needs to make room below a new one.
    pub fn update(&self, resources: &Resources) -> Result<(), Failure> {
        self.check_usage(resources)?;
        self.apply(resources)
    }

    /// Refuses a limit that would end the container at once, where that is asked for, in the words of runc.
    fn check_usage(&self, resources: &Resources) -> Result<(), Failure> {
        let Some(memory) = resources.memory.as_ref().filter(|memory| memory.check_before_update)
        else {
            return Ok(());
        };
        let usage =
            fs::read_to_string(self.0.join("memory.current")).step(|| "read memory.current")?;
        let usage = usage.trim().parse::<i64>().unwrap_or(0);
        for (what, limit) in [("memory+swap", memory.swap), ("memory", memory.limit)] {
            if let Some(limit @ 1..) = limit
                && limit <= usage
            {
                let why = format!("rejecting {what} limit {limit} <= usage {usage}");
                return Err(Failure::invalid(why));
            }
        }
        Ok(())
    }

    /// All of them or none: what was set before one is refused is set back.
    pub(super) fn apply(&self, resources: &Resources) -> Result<(), Failure> {
        let mut before = Vec::new();
        let applied = self.set_all(resources, &mut before);
        if applied.is_err() {
            for (file, value) in before.iter().rev() {
                // The refusal is what counts; what can't be had back can't be told beside it.
                for line in value.split_inclusive('\n') {
                    write(file, line).ok();
                }
            }
        }
        applied
    }

    fn set_all(&self, resources: &Resources, before: &mut Before) -> Result<(), Failure> {
        let mut late = Vec::new();
        for setting in settings(resources, processors::possible())? {
            match self.set(&setting, before) {
                Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => {}
                // It may fit the burst that comes after it, and not the one in force.
                Err(error)
                    if setting.file == "cpu.max" && error.kind() == io::ErrorKind::InvalidInput =>
                {
                    late.push(setting);
                }
                result => result.step(|| format!("set {} to {}", setting.file, setting.value))?,
            }
        }
        late.iter().try_for_each(|setting| {
            self.set(setting, before).step(|| format!("set {} to {}", setting.file, setting.value))
        })
    }

    fn set(&self, setting: &Setting, before: &mut Before) -> io::Result<()> {
        let file = self.0.join(&setting.file);
        // Some can only be written to.
        let value = fs::read_to_string(&file).ok();
        write(&file, &setting.value)?;
        before.extend(value.map(|value| (file, value)));
        Ok(())
    }
}

/// Gives a file one line. That it is not there is told by an open that would not make it: for one that would, the kernel says
/// that it is not permitted.
fn write(file: &Path, line: &str) -> io::Result<()> {
    // Without a byte there would be no write.
    let line = if line.is_empty() { "\n" } else { line };
    fs::File::options().write(true).truncate(true).open(file)?.write_all(line.as_bytes())
}

/// Files as they were before they were written to, in that order.
type Before = Vec<(PathBuf, String)>;

/// One value for one file of a group.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: String,
    value: String,
    /// A kernel without the file loses nothing that was asked for.
    optional: bool,
}

fn set(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting { file: file.into(), value: value.to_string(), optional: false }
}

/// What to write, in this order, in a guest that may have so many `processors`.
fn settings(resources: &Resources, processors: u32) -> Result<Vec<Setting>, Failure> {
    let mut settings = Vec::new();
    if let Some(cpu) = &resources.cpu {
        cpu_settings(cpu, &mut settings);
        if let Some(list) = cpu.cpus.as_deref().filter(|list| !list.trim().is_empty()) {
            settings.push(set("cpuset.cpus", own_processors(list, processors)?));
        }
        if cpu.mems.as_deref().is_some_and(|list| !list.trim().is_empty()) {
            // The guest has one node; to which of the host's it is held is the host's to do.
            settings.push(Setting { optional: true, ..set("cpuset.mems", 0) });
        }
    }
    if let Some(memory) = &resources.memory {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        match limit {
            // Zero is what engines write for "not set".
            0 => {}
            limit => settings.push(set("pids.max", maximum(limit))),
        }
    }
    let weight = resources.block_io.as_ref().and_then(|block_io| block_io.weight);
    if let Some(value) = weight.filter(|value| *value != 0) {
        settings.push(set("io.weight", weight::of_block_io(value)));
    }
    for huge in &resources.hugepage_limits {
        settings.push(set(format!("hugetlb.{}.max", checked(&huge.page_size)?), huge.limit));
        let file = format!("hugetlb.{}.rsvd.max", huge.page_size);
        settings.push(Setting { optional: true, ..set(file, huge.limit) });
    }
    for (file, value) in &resources.unified {
        let file = checked(file)?;
        // The kernel takes one line at a time.
        settings.extend(value.trim_end().split('\n').map(|line| set(file, line)));
    }
    Ok(settings)
}

/// A name that can only be that of a file of the group itself.
fn checked(name: &str) -> Result<&str, Failure> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Failure::invalid(format!("{name:?} is no file of a cgroup")));
    }
    Ok(name)
}

fn maximum(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn cpu_settings(cpu: &Cpu, settings: &mut Vec<Setting>) {
    if let Some(idle) = cpu.idle {
        settings.push(set("cpu.idle", idle));
    }
    // An idle group has no weight: the kernel refuses to set one.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
        settings.push(set("cpu.weight", weight::of_cpu_shares(shares)));
    }
    // Zero is "not asked for", and a negative quota is none.
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or_else(|| "max".to_owned(), maximum);
        let period = period.map(|period| format!(" {period}")).unwrap_or_default();
        settings.push(set("cpu.max", format!("{quota}{period}")));
    }
    // Here zero is a value, as with runc: it ends a burst.
    if let Some(burst) = cpu.burst {
        settings.push(set("cpu.max.burst", burst));
    }
}

/// A list of the host's processors as one of the guest's, which are numbered from 0: as many as the list has. To which of
/// the host's they are held is the host's to do.
fn own_processors(list: &str, processors: u32) -> Result<String, Failure> {
    let unknown = || Failure::invalid(format!("cpus {list:?} is no list of processors"));
    let mut count = 0_u32;
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().map_err(|_| unknown())?;
        let last: u32 = last.trim().parse().map_err(|_| unknown())?;
        let length = last.checked_sub(first).and_then(|rest| rest.checked_add(1));
        count = length.and_then(|length| count.checked_add(length)).ok_or_else(unknown)?;
    }
    match count.min(processors.max(1)) {
        0 => Err(unknown()),
        1 => Ok("0".to_owned()),
        count => Ok(format!("0-{}", count - 1)),
    }
}

fn memory_settings(memory: &Memory, settings: &mut Vec<Setting>) -> Result<(), Failure> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    let swap = match (memory.swap.filter(|swap| *swap != 0), limit) {
        // Without a limit on memory there is none on swap either.
        (None, Some(-1)) => Some(-1),
        (swap, _) => swap,
    };
    if let Some(swap) = swap {
        let value = match (swap, limit) {
            (..0, _) => "max".to_owned(),
            (swap, Some(limit @ 0..)) if swap >= limit => (swap - limit).to_string(),
            // As for runc, nothing can be taken off it.
            (swap, Some(..0)) => swap.to_string(),
            _ => {
                return Err(Failure::invalid(
                    "memory.swap counts memory and swap together: it needs a memory.limit that is not above it",
                ));
            }
        };
        // A kernel without swap keeps every limit on it.
        settings.push(Setting { optional: true, ..set("memory.swap.max", value) });
    }
    if let Some(limit) = limit {
        settings.push(set("memory.max", maximum(limit)));
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        settings.push(set("memory.low", maximum(reservation)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Limits, settings};
    use crate::spec::Resources;

    fn written(resources: &str) -> Vec<(String, String)> {
        let resources: Resources = serde_json::from_str(resources).unwrap();
        let settings = settings(&resources, 4).unwrap();
        settings.into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.into(), value.into())
    }

    #[test]
    fn swap_is_what_is_left_above_memory() {
        let settings = written(r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 10}}"#);
        let expected =
            [pair("memory.swap.max", "500"), pair("memory.max", "1000"), pair("memory.low", "10")];
        assert_eq!(settings, expected);
    }

    #[test]
    fn swap_below_memory_is_refused() {
        let resources: Resources =
            serde_json::from_str(r#"{"memory": {"limit": 1000, "swap": 500}}"#).unwrap();
        assert!(settings(&resources, 4).is_err());
    }

    #[test]
    fn cpu_limits_are_translated() {
        let settings = written(
            r#"{"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": ""}}"#,
        );
        let expected = [
            pair("cpu.weight", "100"),
            pair("cpu.max", "50000 100000"),
            pair("cpuset.cpus", "0-1"),
        ];
        assert_eq!(settings, expected);
        assert_eq!(written(r#"{"cpu": {"quota": -1}}"#), [pair("cpu.max", "max")]);
        assert_eq!(written(r#"{"cpu": {"quota": 0, "period": 0}}"#), []);
        assert_eq!(
            written(r#"{"cpu": {"quota": 0, "period": 50000}}"#),
            [pair("cpu.max", "max 50000")]
        );
        assert_eq!(written(r#"{"cpu": {"quota": 5000, "period": 0}}"#), [pair("cpu.max", "5000")]);
        assert_eq!(written(r#"{"cpu": {"burst": 0}}"#), [pair("cpu.max.burst", "0")]);
        assert_eq!(written(r#"{"cpu": {"mems": "0-1,3"}}"#), [pair("cpuset.mems", "0")]);
    }

    #[test]
    fn processors_of_the_host_are_as_many_of_the_guest() {
        for (list, own) in [("3", "0"), ("1,3", "0-1"), ("0-7", "0-3"), (" 2-3 ,9", "0-2")] {
            let json = format!(r#"{{"cpu": {{"cpus": "{list}"}}}}"#);
            assert_eq!(written(&json), [pair("cpuset.cpus", own)], "{list}");
        }
        for bad in ["x", "3-1", "0-4294967295,0", ","] {
            let json = format!(r#"{{"cpu": {{"cpus": "{bad}"}}}}"#);
            assert!(settings(&serde_json::from_str(&json).unwrap(), 4).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_limit_on_memory_is_none_on_swap() {
        let expected = [pair("memory.swap.max", "max"), pair("memory.max", "max")];
        assert_eq!(written(r#"{"memory": {"limit": -1}}"#), expected);
    }

    #[test]
    fn no_limit_and_not_set_differ() {
        assert_eq!(written(r#"{"pids": {"limit": -1}}"#), [pair("pids.max", "max")]);
        assert_eq!(
            written(r#"{"pids": {"limit": 0}, "memory": {"limit": 0}, "cpu": {"shares": 0}}"#),
            []
        );
    }

    #[test]
    fn a_unified_value_is_written_line_by_line() {
        let lines = written(r#"{"unified": {"io.weight": "default 50\n8:0 200\n"}}"#);
        assert_eq!(lines, [pair("io.weight", "default 50"), pair("io.weight", "8:0 200")]);
        assert_eq!(written(r#"{"unified": {"io.weight": ""}}"#), [pair("io.weight", "")]);
    }

    #[test]
    fn nothing_is_written_as_an_empty_line() {
        let group = tempfile::tempdir().unwrap();
        let file = group.path().join("cpuset.mems");
        fs::write(&file, "0\n").unwrap();
        let nothing = serde_json::from_str(r#"{"unified": {"cpuset.mems": ""}}"#).unwrap();
        Limits(group.path().to_owned()).apply(&nothing).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "\n");
    }

    #[test]
    fn a_unified_key_can_not_leave_the_group() {
        let resources: Resources =
            serde_json::from_str(r#"{"unified": {"../cgroup.procs": "1"}}"#).unwrap();
        assert!(settings(&resources, 4).is_err());
    }

    #[test]
    fn the_weight_of_input_and_output_is_translated() {
        assert_eq!(written(r#"{"blockIO": {"weight": 1000}}"#), [pair("io.weight", "10000")]);
        assert_eq!(written(r#"{"blockIO": {"weight": 0}}"#), []);
    }

    #[test]
    fn a_refused_update_leaves_what_was_in_force() {
        let group = tempfile::tempdir().unwrap();
        let file = |name: &str| group.path().join(name);
        fs::write(file("cpu.weight"), "100\n").unwrap();
        fs::write(file("memory.max"), "max\n").unwrap();
        // Nothing can be written to it.
        fs::create_dir(file("pids.max")).unwrap();
        let resources =
            r#"{"cpu": {"shares": 2}, "memory": {"limit": 1000}, "pids": {"limit": 5}}"#;
        let limits = Limits(group.path().to_owned());
        let refused = limits.update(&serde_json::from_str(resources).unwrap()).unwrap_err();
        assert!(refused.message.starts_with("set pids.max to 5: "), "{refused}");
        assert_eq!(fs::read_to_string(file("cpu.weight")).unwrap(), "100\n");
        assert_eq!(fs::read_to_string(file("memory.max")).unwrap(), "max\n");
    }

    #[test]
    fn a_file_that_the_kernel_does_not_have_is_missed_where_it_was_asked_for() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("memory.max"), "max\n").unwrap();
        let limits = Limits(group.path().to_owned());
        let apply = |resources| limits.apply(&serde_json::from_str(resources).unwrap());
        apply(r#"{"memory": {"limit": 1000, "swap": 1500}}"#).unwrap();
        assert_eq!(fs::read_to_string(group.path().join("memory.max")).unwrap(), "1000");
        assert!(!group.path().join("memory.swap.max").exists());
        let asked = apply(r#"{"memory": {"limit": 5}, "unified": {"no.such": "1"}}"#).unwrap_err();
        assert_eq!(asked.message, "set no.such to 1: no such file or directory");
        assert_eq!(fs::read_to_string(group.path().join("memory.max")).unwrap(), "1000");
    }

    #[test]
    fn a_limit_that_is_used_up_is_refused_where_that_is_asked_for() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("memory.current"), "1000\n").unwrap();
        let limits = Limits(group.path().to_owned());
        let check = |memory: &str| {
            let resources = format!(r#"{{"memory": {{{memory}, "checkBeforeUpdate": true}}}}"#);
            limits.check_usage(&serde_json::from_str(&resources).unwrap())
        };
        for refused in [r#""limit": 1000"#, r#""limit": 400, "swap": 2000"#, r#""swap": 999"#] {
            assert!(check(refused).is_err(), "{refused}");
        }
        for fits in [r#""limit": 1001, "swap": 1001"#, r#""limit": -1, "swap": 0"#] {
            assert!(check(fits).is_ok(), "{fits}");
        }
    }
}
