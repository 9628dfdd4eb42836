//! The sandbox's control groups on the host, on cgroup v1, v2 and hybrid hosts.
//!
//! ```text
//! PARENT ─┬─ NAME/            cgroupsPath: the monitor; shows the limits that were asked for
//!         └─ NAME.kata-vm/    VMM and proxy: the sum of the containers' limits, and what running a VM takes
//! ```
//!
//! The second, and those of the containers that join a pod, have no id in their names (`names.rs`).
//!
//! They lie side by side, so that engines read in the group that they know exactly what they asked for, and a limit that fits
//! a container (4 tasks, 8 MiB) does not end its VMM. Whatever holds for the parent (a pod's group) binds both. The shim is
//! in none of them: it has to outlive their limits.

mod ceiling;
mod files;
mod hierarchies;
mod names;
mod remove;
mod systemd;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use kata_spec::{CpuLimits, Limits};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use thiserror::Error;

use self::{files::Setting, hierarchies::Hierarchies};
use crate::random;

pub use ceiling::MemoryCeiling;
use remove::remove_all;
pub use remove::{remove, remove_unused};

/// Attribute of a group that one of us has made, not an engine.
const MADE_BY_US: &str = "trusted.kata";

/// Parent of the groups of sandboxes whose spec names none.
const COMMON_PARENT: &str = "kata";

/// Why a control group could not be made, limited, entered or removed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CgroupError {
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    #[error(
        "cgroupsPath {0:?} is neither a path nor systemd's slice:prefix:name with a slice that there can be"
    )]
    SystemdPath(String),
    #[error("cgroupsPath {0:?} leaves the cgroup file system, or is its root")]
    Escapes(String),
    #[error("make up a name for the cgroup")]
    Name(#[source] io::Error),
    #[error("make cgroup {path}")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write {value:?} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("container's cgroup unexpectedly frozen: {0}")]
    Frozen(PathBuf),
    #[error("container's cgroup is not empty: {processes} process(es) found in {path}")]
    NotEmpty { path: PathBuf, processes: usize },
    #[error("list cgroup {path}")]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("remove cgroup {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A directory that is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Absolute host path.
    pub path: PathBuf,
    /// The group itself; otherwise on the way to it.
    pub own: bool,
}

/// One group, in every hierarchy of the host: planned first, so that the ledger can name it, then made.
#[derive(Debug, Clone)]
pub struct Group {
    hierarchies: Hierarchies,
    /// Relative to each hierarchy's root.
    path: PathBuf,
}

impl Group {
    /// Where the group of a container goes; `cgroups_path` as in the OCI spec. When it names none it is told apart by more
    /// than the id: the same id below another `--root` is another sandbox, and must not be killed with this one. The id is
    /// the name all the same: it is what people and suites look for.
    ///
    /// # Errors
    /// [`CgroupError`] when the path can't be used.
    pub fn plan(cgroups_path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        let path = match cgroups_path.filter(|path| !path.is_empty()) {
            Some(path) if path.matches(':').count() == 2 && !path.contains('/') => {
                systemd::path(path).ok_or_else(|| CgroupError::SystemdPath(path.into()))?
            }
            Some(path) => path.to_owned(),
            None => {
                let unique = random::bytes::<4>().map_err(CgroupError::Name)?;
                format!("{COMMON_PARENT}/{:08x}/{id:.230}", u32::from_ne_bytes(unique))
            }
        };
        let relative = PathBuf::from(path.trim_start_matches('/'));
        let empty = relative.as_os_str().is_empty();
        if empty || relative.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(CgroupError::Escapes(path));
        }
        Ok(Self { hierarchies: Hierarchies::find()?, path: relative })
    }

    /// What [`Group::make`] is going to make, outermost first.
    pub fn missing(&self) -> Vec<Missing> {
        let depth = self.path.components().count();
        let mut missing = Vec::new();
        for root in self.distinct_roots() {
            let mut path = root.clone();
            for (above, part) in self.path.components().enumerate() {
                path.push(part);
                // A parent that one of us has made is everybody's to remove: the last to leave finds it unused.
                let own = above + 1 == depth;
                let shared = !own && (path == root.join(COMMON_PARENT) || is_ours(&path));
                if !path.exists() || shared {
                    missing.push(Missing { path: path.clone(), own });
                }
            }
        }
        missing
    }

    /// Makes the group in every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make(&self) -> Result<(), CgroupError> {
        for root in self.distinct_roots() {
            make_below(&root, &self.path)?;
        }
        self.hierarchies.pass_controllers_down(&self.path);
        Ok(())
    }

    /// Refuses a group that somebody else is in, and who would end with the container, or in which nothing can run.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`], [`CgroupError::Frozen`].
    pub fn must_be_free(&self) -> Result<(), CgroupError> {
        for root in self.distinct_roots() {
            let path = root.join(&self.path);
            let says = |file: &str, word: &str| {
                fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == word)
            };
            if says("freezer.state", "FROZEN") || says("cgroup.freeze", "1") {
                return Err(CgroupError::Frozen(path));
            }
            // What is not there yet is empty.
            let found = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            let processes = found.lines().count();
            if processes > 0 {
                return Err(CgroupError::NotEmpty { path, processes });
            }
        }
        Ok(())
    }

    /// Puts a process into the group.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn enter(&self, pid: u32) -> Result<(), CgroupError> {
        self.procs().iter().try_for_each(|procs| write(procs, &pid.to_string()))
    }

    /// Kills what is in the group, and removes it.
    ///
    /// # Errors
    /// [`CgroupError::Remove`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_all(self.distinct_roots().iter().map(|root| root.join(&self.path)))
    }

    /// Its `cgroup.procs` files, one for each hierarchy.
    pub fn procs(&self) -> Vec<PathBuf> {
        let roots = self.distinct_roots().into_iter();
        roots.map(|root| root.join(&self.path).join("cgroup.procs")).collect()
    }

    /// Sets limits on the group; what they do not ask for stays.
    ///
    /// A file that this host does not have, and what only old kernels know, is passed over with a warning: the limit holds in
    /// the guest all the same.
    ///
    /// # Errors
    /// [`CgroupError::Write`]: what the host refuses is never dropped silently.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        let mut late = Vec::new();
        for (directory, setting) in self.settings(limits) {
            match apply(&directory, &setting) {
                // It may fit what comes after it, and not what is in force: a new period the new quota, a new quota the new burst.
                Err(CgroupError::Write { source, .. })
                    if BANDWIDTH.contains(&&*setting.file) && is_invalid(&source) =>
                {
                    late.push((directory, setting));
                }
                applied => applied?,
            }
        }
        late.iter().try_for_each(|(directory, setting)| apply(directory, setting))
    }

    /// The same for limits that include what running a VM takes: where the parent allows less, that binds. No list of
    /// processors, or of memory nodes, means all of the parent's.
    ///
    /// # Errors
    /// As [`Group::limit`].
    pub fn bound(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.widen_cpuset(&limits.cpu);
        self.settings(limits).try_for_each(|(directory, setting)| {
            // v1 refuses a quota above the parent's.
            let lenient = setting.lenient || setting.file == "cpu.cfs_quota_us";
            apply(&directory, &Setting { lenient, ..setting })
        })
    }

    /// Takes back what an earlier list has left the group with.
    fn widen_cpuset(&self, cpu: &CpuLimits) {
        let legacy = self.hierarchies.legacy.iter().find(|(controller, _)| *controller == "cpuset");
        let root = legacy.map(|(_, root)| root).or(self.hierarchies.unified.as_ref());
        let Some(group) = root.map(|root| root.join(&self.path)) else { return };
        let lists = [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)];
        for (file, _) in lists.into_iter().filter(|(_, list)| list.is_none()) {
            let now = fs::read_to_string(group.join(file)).unwrap_or_default();
            if now.trim().is_empty() {
                continue;
            }
            // v2's own may be empty; and most kernels let none become empty again while processes are in it.
            let [effective, own] = [&*format!("{file}.effective"), file]
                .map(|file| fs::read_to_string(group.with_file_name(file)));
            let Ok(inherited) = effective.or(own) else { continue };
            if let Err(error) = write(&group.join(file), inherited.trim()) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the VM keeps to what a container was held to");
            }
        }
    }

    fn settings(&self, limits: &Limits) -> impl Iterator<Item = (PathBuf, Setting)> {
        let mut found = Vec::new();
        for (controller, root) in &self.hierarchies.legacy {
            let directory = root.join(&self.path);
            let in_force = fs::read_to_string(directory.join("memory.limit_in_bytes")).ok();
            let in_force = in_force.and_then(|text| text.trim().parse().ok());
            let settings = files::legacy(controller, limits, in_force);
            found.extend(settings.into_iter().map(|setting| (directory.clone(), setting)));
        }
        if let Some(root) =
            self.hierarchies.unified.as_ref().filter(|_| self.hierarchies.legacy.is_empty())
        {
            let settings = files::unified(limits).into_iter();
            found.extend(settings.map(|setting| (root.join(&self.path), setting)));
        }
        found.into_iter()
    }

    /// How many of its processes the host's OOM killer has killed.
    pub fn oom_kills(&self) -> u64 {
        let memory = self.hierarchies.legacy.iter().find(|(controller, _)| *controller == "memory");
        let file = match (memory, &self.hierarchies.unified) {
            (Some((_, root)), _) => root.join(&self.path).join("memory.oom_control"),
            (None, Some(root)) => root.join(&self.path).join("memory.events"),
            (None, None) => return 0,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Several controllers may share one mount point.
    fn distinct_roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = Vec::new();
        for root in self.hierarchies.roots() {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }
}

/// What is checked against each other.
const BANDWIDTH: [&str; 3] = ["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.max"];

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

fn apply(directory: &Path, setting: &Setting) -> Result<(), CgroupError> {
    let path = directory.join(&setting.file);
    match write(&path, &setting.value) {
        Err(CgroupError::Write { source, .. })
            if setting.lenient || source.kind() == io::ErrorKind::NotFound =>
        {
            let (file, value) = (path.display(), &setting.value);
            tracing::warn!(%source, %file, value, "a limit is not set on the host; the guest's own holds");
            Ok(())
        }
        written => written,
    }
}

/// A new v1 cpuset has no CPU and no memory node, and takes no process, until it is given some.
fn inherit_cpuset(path: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let Some(parent) = path.parent() else { continue };
        let (Ok(now), Ok(inherited)) =
            (fs::read_to_string(&own), fs::read_to_string(parent.join(file)))
        else {
            continue;
        };
        // v2 cpusets inherit by being empty.
        if now.trim().is_empty() && !parent.join("cgroup.subtree_control").exists() {
            write(&own, inherited.trim())?;
        }
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Not created: the file system refuses that with another error than that there is none.
    let written = fs::OpenOptions::new().write(true).open(path);
    written
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.into(), value: value.into(), source })
}

/// Another sandbox may take the way to our group away as unused while we are on it; then we begin again.
fn make_below(root: &Path, group: &Path) -> Result<(), CgroupError> {
    loop {
        match make_all(root, group) {
            Err(CgroupError::Make { source, .. } | CgroupError::Write { source, .. })
                if source.kind() == io::ErrorKind::NotFound && root.exists() => {}
            made => return made,
        }
    }
}

fn make_all(root: &Path, group: &Path) -> Result<(), CgroupError> {
    let mut path = root.to_owned();
    for part in group.components() {
        path.push(part);
        match fs::create_dir(&path) {
            Ok(()) => {
                claim(&path);
                inherit_cpuset(&path)?;
            }
            // One that another sandbox has just made may not have been given any CPU yet.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => inherit_cpuset(&path)?,
            Err(source) => return Err(CgroupError::Make { path, source }),
        }
    }
    Ok(())
}

/// Says on a group that no engine has made it.
fn claim(group: &Path) {
    // A v1 hierarchy may not take attributes: then whoever made a parent removes it, or nobody.
    setxattr(group, MADE_BY_US, &[], XattrFlags::empty()).ok();
}

fn is_ours(group: &Path) -> bool {
    getxattr(group, MADE_BY_US, &mut [0_u8; 0]).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use kata_spec::{CpuLimits, Limits};

    use super::{CgroupError, Group, hierarchies::Hierarchies};

    #[test]
    fn a_path_that_leaves_the_file_system_is_refused() {
        assert!(matches!(Group::plan(Some("/a/../../b"), "x"), Err(CgroupError::Escapes(_))));
        assert!(matches!(Group::plan(Some("/"), "x"), Err(CgroupError::Escapes(_))));
        assert!(matches!(Group::plan(Some("a:b:c"), "x"), Err(CgroupError::SystemdPath(_))));
    }

    #[test]
    fn sandboxes_of_the_same_id_have_groups_of_their_own() {
        let plan = || Group::plan(None, &"x".repeat(255)).unwrap();
        assert_ne!(plan().path, plan().path);
        assert!(Group::plan(None, "web").unwrap().path.ends_with("web"));
        assert!(plan().beside().unwrap().path.file_name().unwrap().len() <= 255);
    }

    #[test]
    fn the_group_of_the_vm_is_beside_the_containers_whatever_its_name() {
        let beside = |path: &str| {
            let group = Group::plan(Some(path), "x").unwrap().beside().unwrap();
            group.path.to_str().unwrap().to_owned()
        };
        assert_eq!(beside("/docker/4e1"), "docker/4e1.kata-vm");
        assert_eq!(beside("lone"), "lone.kata-vm");
        let (id, parted) = ("4e1a".repeat(16), ["4e1a".repeat(8), "4e1a".repeat(8)].join("-"));
        assert_eq!(beside(&format!("/pod/{id}")), format!("pod/{parted}.kata-vm"));
        let scope = format!("pod.slice/cri-containerd-{parted}.scope");
        let systemd = format!("pod.slice:cri-containerd:{id}");
        assert_eq!(beside(&systemd), format!("{scope}.kata-vm"));
        let member = Group::plan_member(Some(&systemd), &id).unwrap();
        assert_eq!(member.path, PathBuf::from(scope));
        assert!(Group::plan(Some(&systemd), &id).unwrap().path.to_str().unwrap().contains(&id));
        let long = beside(&format!("/p/{}", "x".repeat(255)));
        assert!(long.strip_prefix("p/").is_some_and(|name| name.len() <= 255), "{long}");
    }

    #[test]
    fn a_group_without_a_list_of_processors_has_its_parents_again() {
        let lists = |cpus: Option<&str>| Limits {
            cpu: CpuLimits { cpus: cpus.map(str::to_owned), ..CpuLimits::default() },
            ..Limits::default()
        };
        // v1 has a list in each group; v2 what is in force, and a list where somebody has asked for one.
        for (parents, is_v2) in [("cpuset.cpus", false), ("cpuset.cpus.effective", true)] {
            let root = tempfile::tempdir().unwrap();
            let found = root.path().to_path_buf();
            let hierarchies = if is_v2 {
                Hierarchies { legacy: Vec::new(), unified: Some(found) }
            } else {
                Hierarchies { legacy: vec![("cpuset", found)], unified: None }
            };
            let group = Group { hierarchies, path: PathBuf::from("pod/a.kata-vm") };
            let pod = root.path().join("pod");
            let own = pod.join("a.kata-vm/cpuset.cpus");
            fs::create_dir_all(own.parent().unwrap()).unwrap();
            if is_v2 {
                fs::write(pod.join("cpuset.cpus"), "\n").unwrap();
            }
            fs::write(pod.join(parents), "0-3\n").unwrap();
            fs::write(&own, "").unwrap();
            group.bound(&lists(None)).unwrap();
            assert_eq!(fs::read_to_string(&own).unwrap(), "", "{parents}");
            group.bound(&lists(Some("0"))).unwrap();
            assert_eq!(fs::read_to_string(&own).unwrap(), "0", "{parents}");
            group.bound(&lists(None)).unwrap();
            assert_eq!(fs::read_to_string(&own).unwrap(), "0-3", "{parents}");
        }
    }
}
