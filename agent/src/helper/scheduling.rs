//! When a process runs, and on which of the guest's CPUs.

use kata_sys::scheduling::{Scheduler, set_io_priority};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

use crate::{
    order::{Failure, Step},
    spec::{self, Process},
};

const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

const IO_CLASSES: [(&str, u8); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// Schedules a process that has just been cloned, as root of the guest: root of a user namespace may not.
pub fn apply(process: Pid, spec: &Process) -> Result<(), Failure> {
    if let Some(scheduler) = &spec.scheduler {
        settings(scheduler)?.apply(Some(process)).step(|| format!("set {}", scheduler.policy))?;
    }
    if let Some(priority) = &spec.io_priority {
        let class = number(&IO_CLASSES, &priority.class)?;
        set_io_priority(Some(process), class, priority.priority)
            .step(|| format!("set {}", priority.class))?;
    }
    Ok(())
}

/// Whether [`apply`] has anything to do.
pub fn is_asked_for(spec: &Process) -> bool {
    spec.scheduler.is_some() || spec.io_priority.is_some()
}

/// Before the process is in the container's cgroup.
pub fn enter_initial_cpus(spec: &Process) -> Result<(), Failure> {
    enter(spec.exec_cpu_affinity.as_ref().and_then(|affinity| affinity.initial.as_deref()))
}

/// Once it is.
pub fn enter_final_cpus(spec: &Process) -> Result<(), Failure> {
    enter(spec.exec_cpu_affinity.as_ref().and_then(|affinity| affinity.last.as_deref()))
}

fn enter(list: Option<&str>) -> Result<(), Failure> {
    let Some(list) = list.filter(|list| !list.trim().is_empty()) else { return Ok(()) };
    let cpus = cpus(list)?;
    sched_setaffinity(None, &cpus).step(|| format!("run on the CPUs {list} of the guest"))
}

fn cpus(list: &str) -> Result<CpuSet, Failure> {
    let wrong = || Failure::invalid(format!("{list:?} is no list of CPUs"));
    let number = |word: &str| word.trim().parse::<usize>().map_err(|_| wrong());
    let mut set = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for cpu in number(first)?..=number(last)? {
            if cpu >= CpuSet::MAX_CPU {
                return Err(wrong());
            }
            set.set(cpu);
        }
    }
    Ok(set)
}

fn settings(spec: &spec::Scheduler) -> Result<Scheduler, Failure> {
    let mut settings = Scheduler::new(number(&POLICIES, &spec.policy)?);
    for flag in &spec.flags {
        settings.flags |= number(&FLAGS, flag)?;
    }
    settings.nice = spec.nice;
    settings.priority = spec.priority;
    settings.runtime = spec.runtime;
    settings.deadline = spec.deadline;
    settings.period = spec.period;
    Ok(settings)
}

fn number<T: Copy>(table: &[(&str, T)], name: &str) -> Result<T, Failure> {
    let row = table.iter().find(|(known, _)| *known == name);
    row.map(|(_, number)| *number)
        .ok_or_else(|| Failure::invalid(format!("{name:?} is unknown to this guest")))
}

#[cfg(test)]
mod tests {
    use super::cpus;

    #[test]
    fn a_list_has_numbers_and_ranges() {
        let set = cpus("0, 2-3").unwrap();
        let expected = [true, false, true, true, false];
        assert_eq!([0, 1, 2, 3, 4].map(|cpu| set.is_set(cpu)), expected);
        assert!(cpus("x").is_err() && cpus("0-99999").is_err());
    }
}
