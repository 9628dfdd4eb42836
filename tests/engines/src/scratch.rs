//! The directory of one engine, and what a run of tests that was killed has left.
//!
//! Names have the test program's pid in them: what belongs to a dead one is nobody's. It is cleared before the first engine
//! starts, in the order in which things hold each other: processes, sandboxes, mounts, network namespaces, files.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tempfile::TempDir;

use crate::netns;

/// What all names begin with; a pid and another hyphen follow.
pub(crate) const PREFIX: &str = "ke-";

/// A directory for an engine of this test program, cleared of what an earlier one has left anywhere.
pub(crate) fn scratch() -> TempDir {
    static CLEARED: Once = Once::new();
    CLEARED.call_once(clear);
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir().unwrap()
}

/// Clears what belongs to test programs that are dead. Nothing here is a reason not to test: what can't be cleared stays.
fn clear() {
    for directory in entries(&env::temp_dir()).into_iter().filter(|path| is_orphan(path)) {
        println!("clearing {}", directory.display());
        let holders = holders(&directory);
        let namespaces: Vec<PathBuf> = holders.iter().filter_map(namespace_of).collect();
        kill(&holders);
        delete_sandboxes(&directory);
        namespaces.iter().for_each(|name| delete_namespace(name));
        for point in mounts_below(&directory) {
            unmount(&point, UnmountFlags::DETACH).ok();
        }
        fs::remove_dir_all(&directory).ok();
    }
    let namespaces = entries(Path::new(netns::PLACE));
    namespaces.iter().filter(|path| is_orphan(path)).for_each(|name| delete_namespace(name));
}

fn is_orphan(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    owner(&name).is_some_and(|owner| !is_alive(owner))
}

/// A zombie is as dead as can be; its parent may never ask.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn owner(name: &str) -> Option<i32> {
    let (owner, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    owner.parse().ok()
}

/// Sandboxes whose bundle is below a directory: podman's, and docker's.
fn delete_sandboxes(directory: &Path) {
    let Some(prefix) = env::var_os("KATA_PREFIX") else { return };
    let is_below = |sandbox: &PathBuf| {
        let record = fs::read_to_string(sandbox.join("state.json")).unwrap_or_default();
        record.contains(&*directory.to_string_lossy())
    };
    for root in [Path::new("/run/kata"), &directory.join("exec/runtime-runc/moby")] {
        for sandbox in entries(root).into_iter().filter(is_below) {
            let mut command = Command::new(Path::new(&prefix).join("bin/kata-runtime"));
            command.arg("--root").arg(root).args(["delete", "--force"]);
            command.arg(sandbox.file_name().unwrap_or_default()).output().ok();
        }
    }
}

/// The name of the network namespace that a process is in, if it has one.
fn namespace_of(pid: &i32) -> Option<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    let of_process = identity(Path::new(&format!("/proc/{pid}/ns/net")))?;
    entries(Path::new(netns::PLACE)).into_iter().find(|name| identity(name) == Some(of_process))
}

fn delete_namespace(name: &Path) {
    let name = name.file_name().unwrap_or_default();
    Command::new("ip").args(["netns", "delete"]).arg(name).output().ok();
}

/// A process.
struct Process {
    pid: i32,
    parent: i32,
    holds: bool,
}

/// Processes that have to do with a directory, and all that they have started.
fn holders(directory: &Path) -> BTreeSet<i32> {
    let all: Vec<Process> = entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|process| Process::read(&process, directory))
        .collect();
    let mut found: BTreeSet<i32> = all.iter().filter(|it| it.holds).map(|it| it.pid).collect();
    loop {
        let more: Vec<i32> = all
            .iter()
            .filter(|it| found.contains(&it.parent) && !found.contains(&it.pid))
            .map(|it| it.pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

impl Process {
    fn read(process: &Path, directory: &Path) -> Option<Self> {
        let pid = process.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let line = fs::read(process.join("cmdline")).ok()?;
        let named = String::from_utf8_lossy(&line).contains(&*directory.to_string_lossy());
        let below =
            |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(directory));
        let opened = || entries(&process.join("fd")).into_iter().any(below);
        Some(Self { pid, parent, holds: named || below(process.join("cwd")) || opened() })
    }
}

/// Kills processes and waits until they are dead.
fn kill(pids: &BTreeSet<i32>) {
    let open = |pid: &i32| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
    for process in pids.iter().filter_map(open) {
        pidfd_send_signal(&process, Signal::KILL).ok();
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).ok();
    }
}

/// Mount points below a directory, the last one first.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    below
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn the_owner_is_in_the_name() {
        assert_eq!(owner("ke-12-0"), Some(12));
        assert_eq!(owner("ke-12-aB3"), Some(12));
        for other in ["ke2Kf25r", "ke-x-1", "ke-12", "cni-12-3"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
