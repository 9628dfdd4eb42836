//! What is seen of the container by those who enter this process's namespaces.
//!
//! Engines do that, to copy files or to list processes (`/proc/PID/ns/mnt` and its like): what they find here must be the
//! container's, or nothing, and never the host's. So the monitor is born in namespaces of its own and moves its root to a
//! clone of the container's, with the volumes in their places. File systems that the guest makes are not here, but for an
//! empty one in the place of each tmpfs, and no process but this one.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        UnmountFlags, fsconfig_create, fsmount, fsopen, mount_change, move_mount, unmount,
    },
    process::{chdir, fchdir, pivot_root},
};

/// Every host has it, and nobody misses what is below it here.
const MOUNT_POINT: &str = "/proc";

/// The trees of a container, detached.
pub struct View {
    /// Its root.
    pub root: OwnedFd,
    /// Its volumes, in the order of their mounts.
    pub volumes: Vec<(OwnedFd, PathBuf)>,
}

impl View {
    /// Makes it all that this process sees. The mount namespace must be its own.
    pub fn enter(self) -> io::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        attach(&self.root, CWD, MOUNT_POINT)?;
        // A clone of a shared mount is shared as well.
        mount_change(MOUNT_POINT, private)?;
        let root = openat(CWD, MOUNT_POINT, DIRECTORY, Mode::empty())?;
        for (tree, destination) in &self.volumes {
            let directory = FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory;
            match make(&root, destination, directory) {
                Ok(place) => attach(tree, &place, "")?,
                // By way of a link it lies in a tmpfs, whose stand-in can't be written to: the guest alone has it. Or the
                // guest can't make it either, and says so.
                Err(error)
                    if matches!(Errno::from_io_error(&error), Some(Errno::ROFS | Errno::EXIST)) => {
                }
                Err(error) => return Err(error),
            }
        }
        processes(&root)?;
        fchdir(&root)?;
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        Ok(chdir("/")?)
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn attach(tree: &OwnedFd, directory: impl AsFd, path: &str) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(tree, "", directory, path, flags)?)
}

/// A proc for those that look for one, of this process's pid namespace; without a place there is none.
fn processes(root: &OwnedFd) -> io::Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let Ok(place) = openat2(root, "proc", DIRECTORY, Mode::empty(), resolve) else { return Ok(()) };
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let proc = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(&proc, &place, "")
}

/// The mount point of a volume, made if it is not there, as the guest will make it: it is the same root. Links lead to
/// places in it, wherever an image points them.
fn make(root: &OwnedFd, destination: &Path, directory: bool) -> io::Result<OwnedFd> {
    let mut parts = destination
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .peekable();
    let mut here = root.try_clone()?;
    let mut path = PathBuf::new();
    while let Some(name) = parts.next() {
        let above = here;
        path.push(name);
        here = match open(root, &path) {
            Err(Errno::NOENT) => {
                if directory || parts.peek().is_some() {
                    mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    openat(&above, name, flags, Mode::from_raw_mode(0o644))?;
                }
                open(root, &path)?
            }
            other => other?,
        };
    }
    Ok(here)
}

fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };

    use super::{DIRECTORY, make};
    use rustix::fs::{CWD, Mode, openat};

    #[test]
    fn mount_points_are_made_within_the_root_wherever_links_point() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, outside) = (scratch.path().join("root"), scratch.path().join("outside"));
        fs::create_dir_all(root.join("real")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("/real", root.join("link")).unwrap();
        symlink("../../../../outside", root.join("escape")).unwrap();
        let fd = openat(CWD, &root, DIRECTORY, Mode::empty()).unwrap();
        make(&fd, Path::new("/link/a/b"), true).unwrap();
        make(&fd, Path::new("/real/file"), false).unwrap();
        assert!(root.join("real/a/b").is_dir() && root.join("real/file").is_file());
        // The link dangles in the root: nothing is made for it, and nothing outside.
        make(&fd, &PathBuf::from("/escape/x"), true).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
