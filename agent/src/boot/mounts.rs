//! The agent's own mounts.
//!
//! A container's root can be pivoted into only from a root that is a mount on something: the initramfs is not. So the
//! agent moves to a tmpfs first; what lies below stays, read-only, so that nobody can write to the agent's file.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use kata_protocol::{ROOTS, VOLUMES};
use rustix::{
    fs::{IFlags, ioctl_setflags},
    io::Errno,
    mount::{MountFlags, mount, mount_move, mount_remount},
    process::{chdir, chroot},
};

use super::{BootError, During, NODES, SCRUBBED_COMMAND_LINE};

const NEW_ROOT: &str = "/newroot";
const GUARDED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts the kernel's file systems in a new root and enters it. What containers are to see as the command line is in it.
pub fn enter_new_root(command_line: &str) -> Result<(), BootError> {
    fs::create_dir_all(NEW_ROOT).during("make the new root")?;
    mount(
        "tmpfs",
        NEW_ROOT,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755,size=1m"),
    )
    .during("mount the new root")?;
    chdir(NEW_ROOT).during("enter the new root")?;
    let make = |name: &str| fs::create_dir(name).during(format!("make /{name}"));
    for name in ["proc", "sys", "dev", "run", "container"] {
        make(name)?;
    }
    write_for_good(SCRUBBED_COMMAND_LINE.trim_start_matches('/'), command_line)
        .during("write the scrubbed command line")?;
    mount_move("/proc", "proc").during("move /proc")?;
    mount("sysfs", "sys", "sysfs", GUARDED, None).during("mount /sys")?;
    let executable = MountFlags::NOSUID;
    // A kernel with CONFIG_DEVTMPFS_MOUNT has one on the old root already; another view of it does no harm.
    mount("devtmpfs", "dev", "devtmpfs", executable | MountFlags::NOEXEC, Some(c"mode=755"))
        .during("mount /dev")?;
    for name in ["dev/pts", "dev/shm", "dev/mqueue"] {
        match fs::create_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.during(format!("make /{name}"))?,
        }
    }
    let no_exec = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", "dev/pts", "devpts", no_exec, Some(c"mode=620,ptmxmode=666"))
        .during("mount /dev/pts")?;
    mount("tmpfs", "dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"))
        .during("mount /dev/shm")?;
    mount("mqueue", "dev/mqueue", "mqueue", GUARDED, None).during("mount /dev/mqueue")?;
    mount("tmpfs", "run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .during("mount /run")?;
    fs::create_dir("run/kata").during("make /run/kata")?;
    fs::set_permissions("run/kata", std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .during("close /run/kata")?;
    fs::create_dir(NODES.trim_start_matches('/')).during("make a place for nodes")?;
    // The limits of the group that is the root of a container's namespace are not the container's to change.
    mount("cgroup2", "sys/fs/cgroup", "cgroup2", GUARDED, Some(c"nsdelegate"))
        .during("mount /sys/fs/cgroup")?;
    // The file system of the initrd itself, under every mount of it that a container could come by.
    mount_remount("/", MountFlags::RDONLY, "").during("make the initrd read-only")?;
    mount_move(".", "/").during("move the new root")?;
    chroot(".").during("change to the new root")?;
    chdir("/").during("enter the new root")?;
    mount_remount("/", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, "")
        .during("make the new root read-only")
}

/// Writes a file that containers are shown. Whoever may mount can have its file system written to again, but not it.
fn write_for_good(path: &str, content: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content.as_bytes())?;
    match ioctl_setflags(&file, IFlags::IMMUTABLE) {
        // A kernel without TMPFS_XATTR has no such flag.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Mounts what the host shares; a guest without one of the devices goes without.
pub fn mount_shares() -> Result<(), BootError> {
    for (tag, place) in [ROOTS, VOLUMES] {
        fs::create_dir_all(Path::new(place)).during(format!("make {place}"))?;
        match mount(tag, place, "virtiofs", MountFlags::empty(), None) {
            // What the driver says of a tag that no device has.
            Err(Errno::INVAL) => {}
            result => result.during(format!("mount {tag}"))?,
        }
    }
    Ok(())
}
