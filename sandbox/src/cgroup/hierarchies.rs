//! Where the host has mounted what.

use std::{fs, path::PathBuf};

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
