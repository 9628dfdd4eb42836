//! The mounts of a container, in the order of its spec.
//!
//! Each is made detached (`fsmount`, `open_tree`), given its attributes, and only then attached, to a mount point that
//! was opened below the container's root: no path of the container's is looked up twice.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_sys::mount_attr::{self, MountAttributes, Reach};
use rustix::{
    fs::{CWD, FileType, OFlags, fstat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use super::{
    copy_up,
    options::{Change, Extent, Options},
    over_proc,
    paths::{Leaf, Root, leaf_for},
    sources::Sources,
};
use crate::{
    order::{Failure, Step},
    spec::Mount,
};

/// Makes every mount of the spec below `root`; returns those that are to be made read-only when everything is in its place.
pub fn make_all(root: &Root, mounts: &[Mount], sources: &Sources) -> Result<Vec<OwnedFd>, Failure> {
    let mut nonce = Cover::new(&sources.command_line);
    let mut unfinished = Vec::new();
    for (mount, source) in mounts.iter().zip(&sources.mounts) {
        unfinished.extend(make(root, mount, source.as_ref())?);
        if mount.kind.as_deref() == Some("proc") {
            hide_nonce(root, Path::new(&mount.destination), &mut nonce)
                .step(|| "hide the boot nonce")?;
        }
    }
    Ok(unfinished)
}

/// How far a mount that is a bind mount reaches.
pub fn bind_extent(mount: &Mount, options: &Options) -> Option<Extent> {
    let by_kind = (mount.kind.as_deref() == Some("bind")).then_some(Extent::Mount);
    options.bind.or(by_kind)
}

/// True when the container brings a `/dev` of its own, which is then left as it is.
pub fn brings_devices(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        Path::new(&mount.destination) == Path::new("/dev")
            && bind_extent(mount, &Options::parse(&mount.options)).is_some()
    })
}

/// A tmpfs begins empty: what the spec wants to have in it comes before it is made read-only, by whoever it is returned to.
fn make(root: &Root, mount: &Mount, source: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Failure> {
    let mut options = Options::parse(&mount.options);
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    let unfinished = source.is_none()
        && mount.kind.as_deref() == Some("tmpfs")
        && options.mount.set & read_only != 0;
    if unfinished {
        options.mount.set &= !read_only;
    }
    let kind = mount.kind.as_deref().unwrap_or_default();
    let described = || format!("mount {kind} on {}", mount.destination);
    let target = PathBuf::from(&mount.destination);
    if kind == "tmpfs" && !options.data.iter().any(|(key, _)| key == "mode") {
        let mode = mode_of(root, &target).step(described)?;
        options.data.extend(mode.map(|mode| ("mode".to_owned(), Some(format!("{mode:o}")))));
    }
    let made = match source {
        Some(_) => None,
        None => Some(new_filesystem(kind, mount, &options).step(described)?),
    };
    let Some(detached) = source.or(made.as_ref()) else { return Ok(None) };
    if options.copy_up {
        let below = root.look_up(&target, OFlags::RDONLY | OFlags::DIRECTORY);
        if let Ok(below) = below {
            copy_up::copy_directory(&below, detached)
                .step(|| format!("copy {} up", mount.destination))?;
        }
    }
    change(detached, &options).step(described)?;
    if matches!(kind, "proc" | "sysfs") {
        must_be_no_link(root, &target)?;
    }
    let leaf = leaf_for(detached).step(described)?;
    let place =
        root.make(&target, leaf).step(|| format!("make mount point {}", mount.destination))?;
    let made_here = made.as_ref().map(|_| kind);
    over_proc::check(root, &place, &mount.destination, made_here)?;
    attach(detached, &place).step(described)?;
    for (kind, extent) in &options.propagation {
        propagate(detached, u64::from(kind.bits()), *extent).step(described)?;
    }
    Ok(made.filter(|_| unfinished))
}

/// In the words of runc: what an image's link leads to is not where programs look for these two.
fn must_be_no_link(root: &Root, target: &Path) -> Result<(), Failure> {
    let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(place) = root.look_up(target, itself) else { return Ok(()) };
    let stat = fstat(&place).step(|| format!("look at {}", target.display()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        let target = target.display();
        return Err(Failure::invalid(format!("{target} must be mounted on ordinary directory")));
    }
    Ok(())
}

/// A tmpfs that is not told its mode has that of the directory that it covers, as with runc: `/tmp` stays open to all.
fn mode_of(root: &Root, target: &Path) -> rustix::io::Result<Option<u32>> {
    // What is not there has no mode.
    let Ok(below) = root.look_up(target, OFlags::PATH | OFlags::DIRECTORY) else { return Ok(None) };
    Ok(Some(fstat(below)?.st_mode & 0o7777))
}

/// A detached copy of the mount at `source`.
pub fn clone_tree(source: &Path, extent: Extent) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    flags.set(OpenTreeFlags::AT_RECURSIVE, extent == Extent::Tree);
    open_tree(CWD, source, flags)
}

/// A detached copy of the mount with an opened file as its root.
pub fn clone_opened(file: impl AsFd, extent: Extent) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, extent == Extent::Tree);
    open_tree(file.as_fd(), "", flags)
}

/// Attaches a detached mount to an opened mount point.
pub fn attach(detached: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(detached.as_fd(), "", place.as_fd(), "", flags)
}

fn new_filesystem(kind: &str, mount: &Mount, options: &Options) -> rustix::io::Result<OwnedFd> {
    // The guest has version 2 only; containers that ask for "cgroup" get its view, as with runc.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = mount.source.as_deref().filter(|source| !source.is_empty()).unwrap_or(kind);
    fsconfig_set_string(context.as_fd(), "source", source)?;
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    if source.starts_with('/') && options.mount.set & read_only != 0 {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn change(mount: &OwnedFd, options: &Options) -> std::io::Result<()> {
    for (change, reach) in [(options.tree, Reach::Tree), (options.mount, Reach::Mount)] {
        let Change { set, clear } = change;
        if set != 0 || clear != 0 {
            mount_attr::change(mount, MountAttributes { set, clear, propagation: 0 }, reach)?;
        }
    }
    Ok(())
}

/// Sets the propagation type of an attached mount.
pub fn propagate(mount: &OwnedFd, propagation: u64, extent: Extent) -> std::io::Result<()> {
    let reach = if extent == Extent::Tree { Reach::Tree } else { Reach::Mount };
    mount_attr::change(mount, MountAttributes { propagation, ..MountAttributes::default() }, reach)
}

/// Makes a mount, or all of a tree, read-only.
pub fn make_read_only(mount: &OwnedFd, reach: Reach) -> std::io::Result<()> {
    let set = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    mount_attr::change(mount, MountAttributes { set, ..MountAttributes::default() }, reach)
}

/// Lets device nodes of a mount be devices, whatever holds where it was taken.
pub fn admit_devices(mount: &OwnedFd) -> std::io::Result<()> {
    let clear = u64::from(MountAttrFlags::MOUNT_ATTR_NODEV.bits());
    mount_attr::change(mount, MountAttributes { clear, ..MountAttributes::default() }, Reach::Mount)
}

/// Covers `cmdline` of a new proc file system by a copy without the boot nonce; there is none with `subset=pid`.
fn hide_nonce(root: &Root, proc: &Path, cover: &mut Cover<&OwnedFd>) -> rustix::io::Result<()> {
    if_there(root, &proc.join("cmdline"))?.map_or(Ok(()), |place| cover.attach(place))
}

/// A detached mount to cover things with. It can be attached once; after that it is a mount like any other, and can be copied.
#[derive(Debug)]
struct Cover<T> {
    mount: T,
    attached: bool,
}

impl<T: AsFd> Cover<T> {
    fn new(mount: T) -> Self {
        Self { mount, attached: false }
    }

    fn attach(&mut self, place: OwnedFd) -> rustix::io::Result<()> {
        if self.attached {
            return attach(clone_opened(&self.mount, Extent::Mount)?, place);
        }
        attach(&self.mount, place)?;
        self.attached = true;
        Ok(())
    }
}

/// Finds what is to be covered. What can't be found for another reason than that it is not there would stay open to all.
fn if_there(root: &Root, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    match root.find(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        // Links that lead to themselves lead the container nowhere either; one of the kernel's would.
        Err(Errno::LOOP) if root.is_loop(path) => Ok(None),
        found => found.map(Some),
    }
}

/// What paths are covered with so that nothing of them can be read.
#[derive(Debug)]
pub struct Masks {
    /// For files.
    null: OwnedFd,
    /// For directories; made for the first.
    empty: Option<Cover<OwnedFd>>,
}

impl Masks {
    /// With the null device of the container.
    pub fn new(null: OwnedFd) -> Self {
        Self { null, empty: None }
    }

    /// Covers what is at `path`; what is not there needs no cover.
    pub fn mask(&mut self, root: &Root, path: &Path) -> rustix::io::Result<()> {
        let Some(place) = if_there(root, path)? else { return Ok(()) };
        if leaf_for(&place).is_ok_and(|leaf| leaf == Leaf::File) {
            return attach(clone_opened(&self.null, Extent::Mount)?, place);
        }
        let empty = match &mut self.empty {
            Some(empty) => empty,
            none => none.insert(Cover::new(empty_directory()?)),
        };
        empty.attach(place)
    }
}

fn empty_directory() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", "0")?;
    fsconfig_set_string(context.as_fd(), "nr_blocks", "1")?;
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Makes the tree at `path` read-only; what is not there needs nothing.
pub fn protect(root: &Root, path: &Path) -> std::io::Result<()> {
    let Some(place) = if_there(root, path)? else { return Ok(()) };
    let copy = clone_opened(&place, Extent::Tree)?;
    make_read_only(&copy, Reach::Tree)?;
    Ok(attach(copy, place)?)
}

/// True for the null device itself and nothing that only has its name.
pub fn is_null_device(file: &OwnedFd) -> bool {
    fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::{Mount, Root, brings_devices, if_there};

    #[test]
    fn a_bind_mount_on_dev_is_the_containers_own_whether_kind_or_option_says_so() {
        let mount = |destination: &str, kind: &str, option: &str| Mount {
            destination: destination.to_owned(),
            kind: Some(kind.to_owned()),
            options: vec![option.to_owned()],
            ..Mount::default()
        };
        for brought in [mount("/dev", "bind", "ro"), mount("/dev/", "none", "rbind")] {
            assert!(brings_devices(&[brought]));
        }
        for other in [mount("/dev", "tmpfs", "ro"), mount("/dev/pts", "bind", "ro")] {
            assert!(!brings_devices(&[other]));
        }
    }

    #[test]
    fn only_what_is_not_there_needs_no_cover() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        symlink("loop", directory.path().join("loop")).unwrap();
        assert!(if_there(&root, Path::new("/file")).unwrap().is_some());
        assert!(if_there(&root, Path::new("/none/x")).unwrap().is_none());
        assert!(if_there(&root, Path::new("/file/x")).unwrap().is_none());
        assert!(if_there(&root, Path::new("/loop")).unwrap().is_none());
        assert!(if_there(&root, Path::new(&"x".repeat(300))).is_err());
        let all = Root::open(Path::new("/")).unwrap();
        assert!(if_there(&all, Path::new("/proc/self/root/etc")).is_err());
    }
}
