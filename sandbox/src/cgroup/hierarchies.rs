//! Where the host has mounted what.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::CgroupError;

/// v1 hierarchies that a container is put into; those that the host lacks are passed over.
const LEGACY: [&str; 9] =
    ["memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "devices", "freezer", "hugetlb"];

/// Where the host has mounted its cgroup file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// v1 hierarchies: controller and mount point.
    pub(super) legacy: Vec<(&'static str, PathBuf)>,
    /// The v2 hierarchy: the only one, or a hybrid host's.
    pub(super) unified: Option<PathBuf>,
}

impl Hierarchies {
    pub(super) fn find() -> Result<Self, CgroupError> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        Ok(Self::parse(&text))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { legacy: Vec::new(), unified: None };
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4) else { continue };
            let mut fields = filesystem.split(' ');
            match (fields.next(), fields.next(), fields.next()) {
                (Some("cgroup2"), ..) if found.unified.is_none() => {
                    found.unified = Some(point.into())
                }
                (Some("cgroup"), _, Some(options)) => {
                    let controllers: Vec<&str> = options.split(',').collect();
                    for name in LEGACY {
                        let known = found.legacy.iter().any(|(seen, _)| *seen == name);
                        if controllers.contains(&name) && !known {
                            found.legacy.push((name, point.into()));
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.legacy.iter().map(|(_, root)| root).chain(&self.unified)
    }

    /// On a v2 host the files of a controller appear in a group only where all above it pass the controller down.
    pub(super) fn pass_controllers_down(&self, group: &Path) {
        let Some(root) = self.unified.as_ref().filter(|_| self.legacy.is_empty()) else { return };
        let mut path = root.clone();
        for part in group.components() {
            let file = path.join("cgroup.subtree_control");
            let there = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
            let passed = fs::read_to_string(&file).unwrap_or_default();
            let is_passed = |name: &&str| passed.split_whitespace().any(|other| other == *name);
            for controller in there.split_whitespace().filter(|name| !is_passed(name)) {
                // A parent that has processes: the limit's own write says so when such a limit was asked for.
                if let Err(error) = fs::write(&file, format!("+{controller}")) {
                    tracing::debug!(%error, file = %file.display(), controller, "controller not passed down");
                }
            }
            path.push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::Hierarchies;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_has_both_kinds() {
        let found = Hierarchies::parse(HYBRID);
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(found.legacy.contains(&("memory", PathBuf::from("/sys/fs/cgroup/memory"))));
    }
}
