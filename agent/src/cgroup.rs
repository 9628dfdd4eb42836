//! The cgroup (v2) of one container: made before its first process, removed after its last.
//!
//! ```text
//! /sys/fs/cgroup ─┬─ agent/            the agent and its helpers
//!                 └─ containers/ID/    one a container; below it is the container's own business
//! ```
//!
//! What all containers may have together ends before the guest's memory and threads do.
//!
//! A cgroup can't be removed while a process is in it, so removal waits for the kernel's word (`populated 0` in
//! `cgroup.events`), never for a time.

mod delegation;
mod device_program;
mod limits;
pub mod processors;

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use kata_protocol::reserve;
use kata_sys::{
    bpf::{self, ProgramKind},
    watch,
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};
use tokio::io::{Interest, unix::AsyncFd};

pub use self::limits::Limits;
use crate::{
    order::{Failure, Step},
    spec::{Resources, Spec},
};

/// Mount point of the hierarchy.
pub const HIERARCHY: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "/sys/fs/cgroup/containers";
const AGENT: &str = "/sys/fs/cgroup/agent";

/// Threads that containers leave to the agent and its helpers, however many they make.
const RESERVED_THREADS: u64 = 512;

/// Most bytes that are taken of one file for statistics.
const MAX_FILE: usize = 64 * 1024;

/// What tells how much a group uses, beside the files of huge pages: engines ask often, and the others say nothing to them.
const STATISTICS: &[&str] = &[
    "cpu.stat",
    "cpu.pressure",
    "memory.current",
    "memory.peak",
    "memory.max",
    "memory.stat",
    "memory.events",
    "memory.pressure",
    "memory.swap.current",
    "memory.swap.peak",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
];

/// The cgroup of one container.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    /// The group itself, [apart].
    birthplace: OwnedFd,
    /// The device rules in force, kept so that an update can replace them in one instant.
    devices: Option<OwnedFd>,
    /// Processes that the OOM killer had killed when somebody sent SIGKILL: an end after that is that one's doing.
    struck_before: u64,
}

/// The group that all containers' are in.
pub fn containers() -> io::Result<OwnedFd> {
    open_directory(Path::new(CONTAINERS))
}

/// Gives every group the controllers that the kernel has, and puts the agent into a leaf of its own.
pub fn prepare_hierarchy() -> io::Result<()> {
    fs::create_dir(AGENT)?;
    fs::write(Path::new(AGENT).join("cgroup.procs"), "0")?;
    fs::create_dir(CONTAINERS)?;
    let available = fs::read_to_string(Path::new(HIERARCHY).join("cgroup.controllers"))?;
    let all: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    for group in [HIERARCHY, CONTAINERS] {
        fs::write(Path::new(group).join("cgroup.subtree_control"), all.join(" "))?;
    }
    let memory = rustix::system::sysinfo();
    let most = memory_of_containers(memory.totalram * u64::from(memory.mem_unit));
    fs::write(Path::new(CONTAINERS).join("memory.max"), most.to_string())?;
    let most = raise_thread_limit()?.saturating_sub(RESERVED_THREADS);
    fs::write(Path::new(CONTAINERS).join("pids.max"), most.to_string())
}

/// Bytes that all containers of a guest may have together. Where they want more, their own cached files go, and then a process of
/// theirs.
fn memory_of_containers(all: u64) -> u64 {
    all.saturating_sub(reserve::memory(all)).max(all / 2)
}

/// The kernel goes by the size of the guest's memory, which gives a small guest some hundred threads where a host has as
/// many as it has pids. Memory is what bounds them here, as it does there.
fn raise_thread_limit() -> io::Result<u64> {
    let pids = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    fs::write("/proc/sys/kernel/threads-max", &pids)?;
    pids.trim().parse().map_err(io::Error::other)
}

impl Cgroup {
    /// Makes the group of a container and applies its limits; nothing is left when that fails.
    pub fn create(container_id: &str, spec: &Spec) -> Result<Self, Failure> {
        let resources = spec.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let nothing = Resources::default();
        let resources = resources.unwrap_or(&nothing);
        let directory = Path::new(CONTAINERS).join(container_id);
        fs::create_dir(&directory).step(|| format!("create cgroup {}", directory.display()))?;
        let birthplace = match apart(&directory) {
            Ok(birthplace) => birthplace,
            Err(error) => {
                fs::remove_dir(&directory).step(|| "remove unused cgroup")?;
                return Err(error).step(|| "set the cgroup apart");
            }
        };
        let mut cgroup = Self { directory, birthplace, devices: None, struck_before: 0 };
        let applied = cgroup
            .limits()
            .apply(resources)
            .and_then(|()| cgroup.limit_devices(&resources.devices).step(|| "load device rules"))
            .and_then(|()| match delegation::owner(spec) {
                Some(owner) => delegation::give(&cgroup.directory, owner),
                None => Ok(()),
            });
        match applied {
            Ok(()) => Ok(cgroup),
            Err(failure) => {
                cgroup.remove().step(|| "remove unused cgroup")?;
                Err(failure)
            }
        }
    }

    /// Its limits, to be changed while nobody else has to wait for the group.
    pub fn limits(&self) -> Limits {
        Limits(self.directory.clone())
    }

    /// Changes the device rules, where there are any.
    pub fn update_devices(&mut self, resources: &Resources) -> Result<(), Failure> {
        if !resources.devices.is_empty() {
            self.limit_devices(&resources.devices).step(|| "load device rules")?;
        }
        Ok(())
    }

    fn limit_devices(&mut self, rules: &[crate::spec::DeviceRule]) -> io::Result<()> {
        let rules =
            rules.iter().map(crate::spec::DeviceRule::located).collect::<Result<Vec<_>, _>>()?;
        let program = bpf::load(ProgramKind::CgroupDevice, &device_program::assemble(&rules)?)?;
        bpf::attach_device_program(self.open()?, &program, self.devices.as_ref())?;
        self.devices = Some(program);
        Ok(())
    }

    /// The group that a new process is to be born in: a mount of its own, from which no way leads up.
    ///
    /// A container that manages groups of its own (an init system) has controllers enabled below its group,
    /// which may then hold no process: its init's present group is taken.
    pub fn birthplace(&self, init: Option<i32>) -> io::Result<OwnedFd> {
        let controllers = fs::read_to_string(self.directory.join("cgroup.subtree_control"))?;
        let Some(init) = init.filter(|_| !controllers.trim().is_empty()) else {
            return self.birthplace.try_clone();
        };
        let membership = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let path = membership.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.ok_or_else(|| io::Error::other("process has no cgroup"))?;
        apart(&Path::new(HIERARCHY).join(path))
    }

    fn open(&self) -> io::Result<OwnedFd> {
        open_directory(&self.directory)
    }

    /// SIGKILL to every process of the group and of those below it.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.kill"), "1")
    }

    /// Stops every process or lets them go on; that is done when the event has come.
    pub fn freeze(&self, freezer: Freezer) -> io::Result<Event> {
        fs::write(self.directory.join("cgroup.freeze"), freezer.value())?;
        self.event("frozen", freezer.value())
    }

    /// The moment when no process is left, in the group or below.
    pub fn emptiness(&self) -> io::Result<Event> {
        self.event("populated", "0")
    }

    fn event(&self, key: &'static str, value: &'static str) -> io::Result<Event> {
        let file = fs::File::open(self.directory.join("cgroup.events"))?;
        Ok(Event { file: watch::watch(file.into(), Interest::PRIORITY)?, key, value })
    }

    /// How often the OOM killer has struck, to be waited for.
    pub fn oom_kills(&self) -> io::Result<OomKills> {
        let file = fs::File::open(self.directory.join("memory.events"))?;
        Ok(OomKills(watch::watch(file.into(), Interest::PRIORITY)?))
    }

    /// Processes of the group and of those below it, as the agent numbers them.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let content =
                fs::read_to_string(directory.join("cgroup.procs")).or_else(without_processes)?;
            pids.extend(content.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        Ok(pids)
    }

    /// Whose want of memory had the OOM killer strike in the group or below it.
    pub fn oom(&self) -> Option<Oom> {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        if count(&events, "oom_kill") <= self.struck_before {
            return None;
        }
        // Without any of its own no limit of the group was in the way.
        Some(if count(&events, "oom") > 0 { Oom::Limit } else { Oom::Guest })
    }

    /// Says that a SIGKILL is about to be sent: what the OOM killer has done until now is not why a process ends.
    pub fn expect_kill(&mut self) {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        self.struck_before = count(&events, "oom_kill");
    }

    /// The files of the group that tell what it uses, verbatim.
    pub fn statistics(&self) -> io::Result<HashMap<String, String>> {
        let mut files = HashMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let huge = name.starts_with("hugetlb.")
                && !name.contains(".rsvd.")
                && (name.ends_with(".current") || name.ends_with(".max"));
            if !huge && !STATISTICS.contains(&name.as_str()) {
                continue;
            }
            // Some have nothing to say for a group of this kind.
            let Ok(mut content) = fs::read_to_string(self.directory.join(&name)) else { continue };
            content.truncate(content.floor_char_boundary(MAX_FILE));
            files.insert(name, content);
        }
        Ok(files)
    }

    /// Removes the group and those below it; all must be empty.
    pub fn remove(&self) -> io::Result<()> {
        for directory in self.tree()?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The group and all below it, parents first.
    fn tree(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![self.directory.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }
}

/// What was short of memory when the OOM killer struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oom {
    /// The container, by its limit.
    Limit,
    /// The guest as a whole.
    Guest,
}

/// A state of a group that `cgroup.events` tells.
#[derive(Debug)]
pub struct Event {
    file: AsyncFd<OwnedFd>,
    key: &'static str,
    value: &'static str,
}

impl Event {
    /// Waits until the group is in that state.
    pub async fn reached(self) -> io::Result<()> {
        loop {
            let content = events(&self.file)?;
            if flat_value(&content, self.key) == Some(self.value) {
                return Ok(());
            }
            self.file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// The count of `memory.events`.
#[derive(Debug)]
pub struct OomKills(AsyncFd<OwnedFd>);

impl OomKills {
    /// The count as it is.
    pub fn now(&self) -> io::Result<u64> {
        let count = flat_value(&events(&self.0)?, "oom_kill").and_then(|count| count.parse().ok());
        Ok(count.unwrap_or(0))
    }

    /// Waits until it is above `seen`.
    pub async fn beyond(&self, seen: u64) -> io::Result<u64> {
        loop {
            let count = self.now()?;
            if count > seen {
                return Ok(count);
            }
            self.0.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

/// Reads a short file of events anew.
fn events(file: &AsyncFd<OwnedFd>) -> io::Result<String> {
    let mut content = [0; 256];
    let length = rustix::io::pread(file.get_ref(), &mut content, 0)?;
    Ok(String::from_utf8_lossy(content.get(..length).unwrap_or_default()).into_owned())
}

/// What the freezer is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezer {
    Freeze,
    Thaw,
}

impl Freezer {
    fn value(self) -> &'static str {
        match self {
            Self::Freeze => "1",
            Self::Thaw => "0",
        }
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A group as a mount that is nowhere attached: whoever comes by the descriptor can't leave it upwards for the agent's files.
fn apart(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    Ok(open_tree(CWD, path, flags)?)
}

/// A group that was removed meanwhile has no processes; those of a threaded one are the threaded domain's above it.
fn without_processes(error: io::Error) -> io::Result<String> {
    match Errno::from_io_error(&error) {
        Some(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => Ok(String::new()),
        _ => Err(error),
    }
}

fn count(events: &str, key: &str) -> u64 {
    flat_value(events, key).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// The value of `key` in a flat-keyed file.
fn flat_value<'a>(content: &'a str, key: &str) -> Option<&'a str> {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::{flat_value, memory_of_containers, without_processes};

    #[test]
    fn containers_leave_memory_to_the_guest() {
        const MIB: u64 = 1 << 20;
        assert_eq!(memory_of_containers(100 * MIB) / MIB, 75);
        assert_eq!(memory_of_containers(10_240 * MIB) / MIB, 10_240 - 24 - 10);
        // The smallest guest has half of it for them.
        assert_eq!(memory_of_containers(40 * MIB) / MIB, 20);
    }

    #[test]
    fn groups_that_are_gone_or_threaded_have_no_processes_of_their_own() {
        for none in [Errno::NODEV, Errno::NOENT, Errno::OPNOTSUPP] {
            assert_eq!(without_processes(none.into()).unwrap(), "", "{none}");
        }
        assert!(without_processes(io::Error::from(Errno::ACCESS)).is_err());
    }

    #[test]
    fn a_key_is_not_mistaken_for_its_prefix() {
        let events = "oom 3\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(flat_value(events, "oom_kill"), Some("1"));
        assert_eq!(flat_value(events, "oom_"), None);
    }
}
