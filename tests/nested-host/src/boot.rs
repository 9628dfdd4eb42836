//! From the initrd to a host with everything mounted.

use std::{
    ffi::CString,
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
    system::{finit_module, sethostname},
};

/// Names of module files, one a line, each after those that it needs.
const MODULES: &str = "/modules";

/// Where the disk of the host is mounted before it becomes `/`.
const ROOT: &str = "/root";

/// The job's disk, in the new root.
pub const JOB: &str = "/job";

/// kind, place, flags, options.
type Mount = (&'static str, &'static str, MountFlags, Option<&'static str>);

const NONE: MountFlags = MountFlags::empty();

/// What a host has, cgroup v2 alone; below [`ROOT`].
const MOUNTS: &[Mount] = &[
    ("proc", "proc", NONE, None),
    ("sysfs", "sys", NONE, None),
    ("cgroup2", "sys/fs/cgroup", NONE, Some("nsdelegate")),
    ("bpf", "sys/fs/bpf", NONE, None),
    ("tmpfs", "run", MountFlags::NOSUID, Some("mode=755")),
    ("devpts", "dev/pts", NONE, Some("gid=5,mode=620,ptmxmode=666")),
    ("tmpfs", "dev/shm", MountFlags::NOSUID, Some("mode=1777")),
    ("mqueue", "dev/mqueue", NONE, None),
    ("hugetlbfs", "dev/hugepages", NONE, None),
];

/// Loads what the initrd has, mounts the disks, and makes the first one `/`.
pub fn enter_root() -> Result<()> {
    attach("devtmpfs", "devtmpfs", "/dev", (NONE, None))?;
    load_modules()?;
    attach("/dev/vda", "ext4", ROOT, (NONE, None))?;
    let below = |path: &str| format!("{ROOT}/{}", path.trim_start_matches('/'));
    mount_move("/dev", below("dev")).context("move /dev")?;
    fs::create_dir_all(below(JOB)).context("make the place of the job")?;
    mount_job(&below("dev/vdb"), &below(JOB))?;
    for (kind, path, flags, options) in MOUNTS {
        attach("none", kind, &below(path), (*flags, *options))?;
    }
    chdir(ROOT).context("enter the new root")?;
    mount_move(".", "/").context("make the new root /")?;
    chroot(".").context("make the new root /")?;
    chdir("/").context("enter the new root")?;
    sethostname(b"nested").context("name the host")
}

fn mount_job(device: &str, place: &str) -> Result<()> {
    attach(device, "ext4", place, (NONE, None))
}

fn attach(
    source: &str,
    kind: &str,
    place: &str,
    (flags, options): (MountFlags, Option<&str>),
) -> Result<()> {
    let context = || format!("mount {kind} at {place}");
    fs::create_dir_all(place).with_context(context)?;
    let options = CString::new(options.unwrap_or_default()).with_context(context)?;
    mount(source, place, kind, flags, options.as_c_str()).with_context(context)
}

fn load_modules() -> Result<()> {
    let list = Path::new(MODULES).join("order");
    let order = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    for name in order.lines() {
        let path = Path::new(MODULES).join(name);
        let context = || format!("load {}", path.display());
        let file = File::open(&path).with_context(context)?;
        match finit_module(&file, c"", 0) {
            Err(Errno::EXIST) => {}
            loaded => loaded.with_context(context)?,
        }
    }
    Ok(())
}
