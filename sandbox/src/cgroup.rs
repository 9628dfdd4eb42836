//! The sandbox's control groups on the host, on cgroup v1, v2 and hybrid hosts.
//!
//! ```text
//! cgroupsPath/        the monitor; the limits that were asked for
//! └── kata-vm/        VMM and proxy, under the same limits
//! ```
//!
//! Controllers are never enabled below `cgroupsPath`: its own limits bind the whole subtree, and so v2's rule
//! against processes in inner groups does not apply. The shim is in none of them: it has to outlive their limits.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use crate::random;

/// Name of the group of VMM and proxy.
const VM_GROUP: &str = "kata-vm";

/// Parent of the groups of sandboxes whose spec names none.
const COMMON_PARENT: &str = "kata";

/// v1 hierarchies that a container is put into; those that the host lacks are passed over.
const LEGACY: [&str; 8] =
    ["memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "devices", "freezer"];

/// A killed process is gone within milliseconds; this catches one stuck in the kernel.
const DEATH: Duration = Duration::from_secs(5);

/// Why a control group could not be made, limited, entered or removed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CgroupError {
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    #[error(
        "cgroupsPath {0:?} is in systemd's slice:prefix:name form, which needs --systemd-cgroup"
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

/// Limits on everything that a sandbox has on the host; absent means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, guest base and overhead included.
    pub memory: Option<i64>,
    /// Microseconds of CPU time in each period.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// cgroup v1 shares, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPU list, "0-1,3".
    pub cpus: Option<String>,
    /// Memory node list.
    pub mems: Option<String>,
}

/// Where the host has mounted its cgroup file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchies {
    /// v1 hierarchies: controller and mount point.
    legacy: Vec<(&'static str, PathBuf)>,
    /// The v2 hierarchy: the only one, or a hybrid host's.
    unified: Option<PathBuf>,
}

impl Hierarchies {
    fn find() -> Result<Self, CgroupError> {
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

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.legacy.iter().map(|(_, root)| root).chain(&self.unified)
    }
}

/// A directory that is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Absolute host path.
    pub path: PathBuf,
    /// The sandbox's own group or one below; otherwise on the way to it.
    pub own: bool,
}

/// The groups of one sandbox: planned first, so that the ledger can name them, then made.
#[derive(Debug, Clone)]
pub struct Groups {
    hierarchies: Hierarchies,
    /// Relative to each hierarchy's root.
    path: PathBuf,
}

impl Groups {
    /// Where the groups of a sandbox go; `cgroups_path` as in the OCI spec. When it names none they are told apart by more
    /// than the id: the same id below another `--root` is another sandbox, and must not be killed with this one.
    ///
    /// # Errors
    /// [`CgroupError`] when the path can't be used.
    pub fn plan(cgroups_path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        let path = match cgroups_path.filter(|path| !path.is_empty()) {
            Some(path) if path.matches(':').count() == 2 && !path.contains('/') => {
                return Err(CgroupError::SystemdPath(path.into()));
            }
            Some(path) => path.to_owned(),
            None => {
                let unique = random::bytes::<4>().map_err(CgroupError::Name)?;
                format!("{COMMON_PARENT}/{id:.240}-{:08x}", u32::from_ne_bytes(unique))
            }
        };
        let relative = PathBuf::from(path.trim_start_matches('/'));
        let empty = relative.as_os_str().is_empty();
        if empty || relative.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(CgroupError::Escapes(path));
        }
        Ok(Self { hierarchies: Hierarchies::find()?, path: relative })
    }

    /// What [`Groups::make`] and [`Groups::make_vm`] are going to make, outermost first.
    pub fn missing(&self) -> Vec<Missing> {
        let depth = self.path.components().count();
        let mut missing = Vec::new();
        for root in self.distinct_roots() {
            let mut path = root.clone();
            for (above, part) in self.path.join(VM_GROUP).components().enumerate() {
                path.push(part);
                // Our own common parent is everybody's to remove: the last to leave finds it unused.
                if !path.exists() || path == root.join(COMMON_PARENT) {
                    missing.push(Missing { path: path.clone(), own: above + 1 >= depth });
                }
            }
        }
        missing
    }

    /// Makes the container's group in every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make(&self) -> Result<(), CgroupError> {
        for root in self.distinct_roots() {
            make_below(&root, &self.path)?;
        }
        self.enable_controllers();
        Ok(())
    }

    /// Makes the group of VMM and proxy. After the limits: a v1 cpuset can't be made smaller than its child's, which
    /// begins as a copy of it.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make_vm(&self) -> Result<(), CgroupError> {
        let group = self.path.join(VM_GROUP);
        self.distinct_roots().iter().try_for_each(|root| make_below(root, &group))
    }

    /// Puts the monitor into the container's group.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn enter(&self, monitor: u32) -> Result<(), CgroupError> {
        for root in self.distinct_roots() {
            write(&root.join(&self.path).join("cgroup.procs"), &monitor.to_string())?;
        }
        Ok(())
    }

    /// `cgroup.procs` files of the group of VMM and proxy, one for each hierarchy.
    pub fn vm_procs(&self) -> Vec<PathBuf> {
        let group = self.path.join(VM_GROUP);
        self.distinct_roots()
            .into_iter()
            .map(|root| root.join(&group).join("cgroup.procs"))
            .collect()
    }

    /// Puts a process into the group of VMM and proxy.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn enter_vm(&self, pid: u32) -> Result<(), CgroupError> {
        self.vm_procs().iter().try_for_each(|procs| write(procs, &pid.to_string()))
    }

    /// Sets the limits on the container's group.
    ///
    /// # Errors
    /// [`CgroupError::Write`]: a limit that the host refuses is never dropped silently.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        for (controller, root) in &self.hierarchies.legacy {
            for (file, value) in legacy_files(controller, limits) {
                write(&root.join(&self.path).join(file), &value)?;
            }
        }
        if self.hierarchies.legacy.is_empty()
            && let Some(root) = &self.hierarchies.unified
        {
            for (file, value) in unified_files(limits) {
                write(&root.join(&self.path).join(file), &value)?;
            }
        }
        Ok(())
    }

    /// On a v2 host the files of a controller appear only where the parent passes it down.
    fn enable_controllers(&self) {
        let Some(root) =
            self.hierarchies.unified.as_ref().filter(|_| self.hierarchies.legacy.is_empty())
        else {
            return;
        };
        let mut path = root.clone();
        for part in self.path.components() {
            for controller in ["+memory", "+cpu", "+cpuset", "+pids", "+io"] {
                let file = path.join("cgroup.subtree_control");
                // A controller that the host does not have, or a parent that has processes: the limit's own
                // write says so when such a limit was asked for.
                if let Err(error) = fs::write(&file, controller) {
                    tracing::debug!(%error, file = %file.display(), controller, "controller not enabled");
                }
            }
            path.push(part);
        }
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

fn legacy_files(controller: &str, limits: &Limits) -> Vec<(&'static str, String)> {
    let all = match controller {
        "memory" => vec![("memory.limit_in_bytes", limits.memory.map(|v| v.to_string()))],
        // The period first: a quota is checked against it.
        "cpu" => vec![
            ("cpu.shares", limits.cpu_shares.map(|v| v.to_string())),
            ("cpu.cfs_period_us", limits.cpu_period.map(|v| v.to_string())),
            ("cpu.cfs_quota_us", limits.cpu_quota.map(|v| v.to_string())),
        ],
        "cpuset" => {
            vec![("cpuset.cpus", limits.cpus.clone()), ("cpuset.mems", limits.mems.clone())]
        }
        _ => Vec::new(),
    };
    all.into_iter().filter_map(|(file, value)| Some((file, value?))).collect()
}

fn unified_files(limits: &Limits) -> Vec<(&'static str, String)> {
    let quota =
        limits.cpu_quota.map(|quota| if quota < 0 { "max".into() } else { quota.to_string() });
    let cpu = match (quota, limits.cpu_period) {
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (Some(quota), None) => Some(quota),
        (None, Some(period)) => Some(format!("max {period}")),
        (None, None) => None,
    };
    // The kernel's own mapping of 2..262144 shares to a weight of 1..10000.
    let weight = limits.cpu_shares.filter(|shares| *shares != 0);
    let weight =
        weight.map(|shares| (1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142).to_string());
    let memory = limits.memory.map(|v| if v < 0 { "max".into() } else { v.to_string() });
    let all = [
        ("memory.max", memory),
        ("cpu.max", cpu),
        ("cpu.weight", weight),
        ("cpuset.cpus", limits.cpus.clone()),
        ("cpuset.mems", limits.mems.clone()),
    ];
    all.into_iter().filter_map(|(file, value)| Some((file, value?))).collect()
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
    fs::write(path, value).map_err(|source| CgroupError::Write {
        path: path.into(),
        value: value.into(),
        source,
    })
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
            // One that another sandbox has just made may not have been given any CPU yet.
            Ok(()) => inherit_cpuset(&path)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => inherit_cpuset(&path)?,
            Err(source) => return Err(CgroupError::Make { path, source }),
        }
    }
    Ok(())
}

/// Removes a group that has neither processes nor groups; leaves one that has.
///
/// # Errors
/// [`CgroupError::Remove`].
pub fn remove_unused(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        removed => removed.map_err(|source| CgroupError::Remove { path: path.into(), source }),
    }
}

/// Kills what is left in a group and the groups below it, and removes them. Succeeds when it is gone already.
///
/// # Errors
/// [`CgroupError::Remove`] when a process survives SIGKILL.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CgroupError::List { path: path.into(), source }),
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path())?;
        }
    }
    let deadline = Instant::now() + DEATH;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source)
                if source.raw_os_error() != Some(libc_ebusy()) || Instant::now() > deadline =>
            {
                return Err(CgroupError::Remove { path: path.into(), source });
            }
            Err(_) => kill_all(path),
        }
    }
}

fn libc_ebusy() -> i32 {
    rustix::io::Errno::BUSY.raw_os_error()
}

/// SIGKILL to every process of the group, and waits until they are dead (or `DEATH` is over).
fn kill_all(path: &Path) {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let pids = procs.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw);
    let mut dying = Vec::new();
    for pidfd in pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        if let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL) {
            tracing::debug!(%error, "process of the group died by itself");
        }
        dying.push(pidfd);
    }
    for pidfd in dying {
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        if let Err(error) = rustix::event::poll(&mut poll, Some(&timeout)) {
            tracing::debug!(%error, "wait for a killed process");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{CgroupError, Groups, Hierarchies, Limits, legacy_files, unified_files};

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

    #[test]
    fn a_path_that_leaves_the_file_system_is_refused() {
        assert!(matches!(Groups::plan(Some("/a/../../b"), "x"), Err(CgroupError::Escapes(_))));
        assert!(matches!(Groups::plan(Some("/"), "x"), Err(CgroupError::Escapes(_))));
        assert!(matches!(Groups::plan(Some("a:b:c"), "x"), Err(CgroupError::SystemdPath(_))));
    }

    #[test]
    fn sandboxes_of_the_same_id_have_groups_of_their_own() {
        let plan = || Groups::plan(None, &"x".repeat(255)).unwrap().path;
        assert_ne!(plan(), plan());
        assert!(plan().file_name().unwrap().len() <= 255);
    }

    #[test]
    fn v1_gets_the_period_before_the_quota() {
        let limits = Limits { cpu_quota: Some(50), cpu_period: Some(100), ..Limits::default() };
        let files = [("cpu.cfs_period_us", "100".into()), ("cpu.cfs_quota_us", "50".into())];
        assert_eq!(legacy_files("cpu", &limits), files);
    }

    #[test]
    fn v2_gets_weight_for_shares_and_max_for_no_limit() {
        let limits = Limits { cpu_shares: Some(1024), memory: Some(-1), ..Limits::default() };
        let files = unified_files(&limits);
        assert!(files.contains(&("cpu.weight", "39".to_owned())));
        assert!(files.contains(&("memory.max", "max".to_owned())));
    }
}
