//! Control groups of this host, whichever version it has.

use std::{fs, path::PathBuf};

/// A group of this host, by its path below the root of each hierarchy.
#[derive(Debug)]
pub struct HostGroup(String);

impl HostGroup {
    /// The group of this path, which need not be there.
    pub fn new(path: &str) -> Self {
        Self(path.trim_start_matches('/').to_owned())
    }

    /// That of VMM and proxy, which goes with it.
    #[must_use]
    pub fn of_vm(&self) -> Self {
        Self(format!("{}.kata-vm", self.0))
    }

    /// True when version 2 is all that this host has.
    pub fn are_v2() -> bool {
        PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists()
    }

    /// Its directory, on version 1 that of a controller.
    pub fn directory(&self, controller: &str) -> PathBuf {
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchy = if Self::are_v2() { root } else { root.join(controller) };
        hierarchy.join(&self.0)
    }

    /// The path of a file, by its names in version 1 and in version 2.
    pub fn file(&self, controller: &str, names: [&str; 2]) -> PathBuf {
        self.directory(controller).join(names[usize::from(Self::are_v2())])
    }

    /// What is in a file of it, without the end of the line.
    pub fn read(&self, controller: &str, names: [&str; 2]) -> String {
        let path = self.file(controller, names);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    }

    /// The pids of its processes.
    pub fn pids(&self) -> Vec<i32> {
        let list = self.read("memory", ["cgroup.procs"; 2]);
        list.lines().map(|pid| pid.parse().unwrap()).collect()
    }
}
