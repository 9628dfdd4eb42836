//! What a sandbox could leave on the host.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, test_kill_process};

/// Everything of a kind that a sandbox makes, as it is now. Compare two: nothing may have come.
///
/// Tests of one program run side by side, so a test that compares must be alone in its program, or look at
/// its own sandbox only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    state: BTreeSet<String>,
}

impl Leftovers {
    /// Looks around.
    pub fn now() -> Self {
        Self {
            processes: processes(),
            mounts: lines("/proc/self/mountinfo"),
            cgroups: cgroups(Path::new("/sys/fs/cgroup")),
            namespaces: names("/run/netns"),
            state: names("/run/kata"),
        }
    }

    /// Asserts that nothing has come since `before`.
    pub fn assert_none_since(before: &Self) {
        let now = Self::now();
        let new = |now: &BTreeSet<String>, before: &BTreeSet<String>| {
            now.difference(before).cloned().collect::<Vec<_>>()
        };
        assert_eq!(new(&now.processes, &before.processes), Vec::<String>::new(), "processes");
        assert_eq!(new(&now.mounts, &before.mounts), Vec::<String>::new(), "mounts");
        assert_eq!(new(&now.cgroups, &before.cgroups), Vec::<String>::new(), "control groups");
        assert_eq!(new(&now.namespaces, &before.namespaces), Vec::<String>::new(), "namespaces");
        assert_eq!(new(&now.state, &before.state), Vec::<String>::new(), "/run/kata");
    }

    /// Names of processes that hold something open below a directory, or work in it: shims, proxies, monitors.
    pub fn holders(directory: &Path) -> Vec<String> {
        let below =
            |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(directory));
        let holds = |process: &Path| {
            let mut fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            below(process.join("cwd")) || fds.any(|fd| below(fd.path()))
        };
        let name = |process: PathBuf| fs::read_to_string(process.join("comm")).unwrap_or_default();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes.filter(|process| holds(process)).map(name).collect()
    }

    /// Asserts that a process is dead.
    pub fn assert_dead(pid: i32) {
        let alive = test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() && !is_zombie(pid);
        assert!(!alive, "process {pid} is alive");
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// True for a program of another installation of Kata, and for what such a program has started.
fn is_of_another(pid: &str) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    let prefix = std::env::var_os("KATA_PREFIX").unwrap_or_default();
    [Some(pid), parent].into_iter().flatten().map(program).any(|program| {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.starts_with("kata-") || name.starts_with("containerd-shim-kata"))
            && !program.starts_with(&prefix)
    })
}

/// Processes of ours: pid and name. A zombie waits for a parent of this machine, not for us.
fn processes() -> BTreeSet<String> {
    let ours = ["kata-", "containerd-shim", "qemu-system"];
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let is_ours = ours.iter().any(|prefix| name.starts_with(prefix));
        if is_ours && !is_zombie(pid) && !is_of_another(&pid.to_string()) {
            found.insert(format!("{pid} {}", name.trim()));
        }
    }
    found
}

fn lines(path: &str) -> BTreeSet<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn names(path: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(path) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Control groups of the host whose name has `id` in it, or, parted, the id of an engine's.
pub fn cgroups_named(id: &str) -> Vec<String> {
    let parted = (id.len() == 64).then(|| format!("{}-{}", &id[..32], &id[32..]));
    let is_named = |path: &String| {
        path.contains(id) || parted.as_ref().is_some_and(|parted| path.contains(parted))
    };
    cgroups(Path::new("/sys/fs/cgroup")).into_iter().filter(is_named).collect()
}

fn cgroups(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(path) else { return found };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(entry.path().to_string_lossy().into_owned());
            found.extend(cgroups(&entry.path()));
        }
    }
    found
}
