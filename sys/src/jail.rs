//! Steps into a jail, for a fresh process that has one thread and is about to execute what it confines.
//!
//! The order that works, and why:
//!
//! 1. [`leave_namespaces`], so that nothing below is seen by the host;
//! 2. [`Tree::enter`], while there is still the privilege to mount;
//! 3. [`limit`], then [`become_user`], which gives up every capability and arms the death signal anew,
//!    for a change of credentials clears it;
//! 4. [`filter::deny`] last: it needs no privilege once `no_new_privs` is set.
//!
//! Not dumpable is not among them: execve makes a process dumpable again if the user may read its program.
//! What counts is that no core is written ([`limit`]) and that no other process has the user's id.

pub mod filter;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, mknodat, openat,
    },
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
        MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen, mount_change, mount_remount, move_mount, open_tree, unmount,
    },
    process::{Signal, fchdir, pivot_root, set_parent_process_death_signal},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};

pub use rustix::process::Resource;

use crate::mount_attr::{self, MountAttributes, Reach};

/// A step into the jail that failed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// unshare(2), or making the mounts private.
    #[error("cannot leave the caller's namespaces")]
    Namespaces(#[source] io::Error),
    /// The file system that becomes the root.
    #[error("cannot make the root of a jail")]
    Root(#[source] io::Error),
    /// One entry of the tree.
    #[error("cannot put {} into a jail", .path.display())]
    Entry {
        /// The host's path, or the jail's for a device node.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// pivot_root(2) and letting go of the host's tree.
    #[error("cannot change to the root of a jail")]
    Pivot(#[source] io::Error),
    /// A resource limit.
    #[error("cannot limit {resource:?}")]
    Limit {
        /// Which one.
        resource: Resource,
        /// What the system said.
        source: io::Error,
    },
    /// Groups, ids, capability sets or `no_new_privs`.
    #[error("cannot give up the privilege to {what}")]
    Privilege {
        /// What for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The parent's end could go unnoticed, or is a fact.
    #[error("cannot follow the parent into its end")]
    Parent(#[source] io::Error),
    /// seccomp(2).
    #[error("cannot install a system call filter")]
    Filter(#[source] io::Error),
}

/// What a process in the jail may do with an entry of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read, and execute.
    ReadOnly,
    /// Read and write; nothing in it is executed.
    Writable,
}

/// A character device, made anew and owned by one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// The only one who may open it.
    pub owner: u32,
}

/// One path in the jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The host's file or directory (symbolic links are followed), with the mounts below it.
    Bind {
        /// Where it is on the host.
        host: PathBuf,
        /// Absolute path in the jail.
        path: PathBuf,
        /// What may be done with it.
        access: Access,
    },
    /// A device node.
    Device {
        /// Absolute path in the jail.
        path: PathBuf,
        /// Which device, and whose.
        device: Device,
    },
}

/// Leaves the given namespaces for new ones; in a new mount namespace nothing propagates either way.
///
/// # Errors
/// [`JailError::Namespaces`].
pub fn leave_namespaces(namespaces: UnshareFlags) -> Result<(), JailError> {
    if namespaces.contains(UnshareFlags::FILES) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "not a namespace");
        return Err(JailError::Namespaces(error));
    }
    // SAFETY: what must not be unshared is the table of descriptors, and it is not (see above).
    let done = unsafe { unshare_unsafe(namespaces) };
    done.map_err(|source| JailError::Namespaces(source.into()))?;
    if namespaces.contains(UnshareFlags::NEWNS) {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|source| JailError::Namespaces(source.into()))?;
    }
    Ok(())
}

/// The whole tree that a jailed process sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Its entries; a directory comes before what lies in it.
    pub entries: Vec<Entry>,
}

impl Tree {
    /// Makes the tree on a tmpfs, moves there, and lets go of everything else.
    ///
    /// Call it in a mount namespace of the process's own ([`leave_namespaces`]).
    ///
    /// # Errors
    /// [`JailError::Root`], [`JailError::Entry`] or [`JailError::Pivot`].
    pub fn enter(&self) -> Result<(), JailError> {
        // All sources are opened before the new root covers anything.
        let sources = self
            .entries
            .iter()
            .map(|entry| match entry {
                Entry::Bind { host, access, .. } => clone_tree(host, *access).map(Some),
                Entry::Device { .. } => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let root = new_root().map_err(JailError::Root)?;
        for (entry, source) in self.entries.iter().zip(sources) {
            entry.place(&root, source)?;
        }
        pivot(&root).map_err(JailError::Pivot)
    }
}

impl Entry {
    fn place(&self, root: &OwnedFd, source: Option<OwnedFd>) -> Result<(), JailError> {
        match (self, source) {
            (Self::Bind { host, path, .. }, Some(source)) => bind(root, path, &source)
                .map_err(|source| JailError::Entry { path: host.clone(), source }),
            (Self::Device { path, device }, _) => make_device(root, path, *device)
                .map_err(|source| JailError::Entry { path: path.clone(), source }),
            (Self::Bind { .. }, None) => Ok(()),
        }
    }
}

/// A detached copy of a host tree, with the attributes that it will have.
fn clone_tree(host: &Path, access: Access) -> Result<OwnedFd, JailError> {
    let mut set = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    set |= match access {
        Access::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::Writable => MountAttrFlags::MOUNT_ATTR_NOEXEC,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, host, flags)
        .map_err(io::Error::from)
        .and_then(|tree| {
            let attributes = MountAttributes { set: bits(set), ..MountAttributes::default() };
            mount_attr::change(&tree, attributes, Reach::Tree)?;
            Ok(tree)
        })
        .map_err(|source| JailError::Entry { path: host.into(), source })
}

fn bits(flags: MountAttrFlags) -> u64 {
    u64::from(flags.bits())
}

/// An empty tmpfs, mounted where it hides nothing that is still needed.
fn new_root() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Holds mount points and device nodes only.
    fsconfig_set_string(context.as_fd(), "size", "1M")?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // Mounts can't be put on a tree that is not itself mounted somewhere; every Linux has a /proc.
    move_mount(root.as_fd(), "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(root)
}

/// The path below the root, with its parent directories made.
fn prepare<'a>(root: &OwnedFd, path: &'a Path) -> io::Result<&'a Path> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a plain absolute path");
    let path = path.strip_prefix("/").map_err(|_| invalid())?;
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(invalid());
    }
    let parents: Vec<&Path> = path.ancestors().skip(1).collect();
    for parent in parents.into_iter().rev().filter(|parent| !parent.as_os_str().is_empty()) {
        match mkdirat(root, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(path)
}

fn bind(root: &OwnedFd, path: &Path, source: &OwnedFd) -> io::Result<()> {
    let path = prepare(root, path)?;
    if FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode) == FileType::Directory {
        mkdirat(root, path, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(openat(root, path, flags, Mode::from_raw_mode(0o444))?);
    }
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(source.as_fd(), "", root.as_fd(), path, empty)?)
}

fn make_device(root: &OwnedFd, path: &Path, device: Device) -> io::Result<()> {
    let path = prepare(root, path)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(root, path, FileType::CharacterDevice, mode, number)?;
    // The umask has no say.
    chmodat(root, path, mode, AtFlags::empty())?;
    let (uid, gid) = (Uid::from_raw(device.owner), Gid::from_raw(device.owner));
    Ok(chownat(root, path, Some(uid), Some(gid), AtFlags::empty())?)
}

fn pivot(root: &OwnedFd) -> io::Result<()> {
    fchdir(root)?;
    // The old root lands on top of the new one, at the same place, and is taken off.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    // The root alone: its entries have attributes of their own.
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    Ok(mount_remount("/", flags, "")?)
}

/// Sets a resource's soft and hard limit.
///
/// # Errors
/// [`JailError::Limit`].
pub fn limit(resource: Resource, most: u64) -> Result<(), JailError> {
    let limit = rustix::process::Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(resource, limit)
        .map_err(|source| JailError::Limit { resource, source: source.into() })
}

/// Becomes an ordinary user for good: one uid, one gid, no group, no capability in any set, no way to gain
/// one; gets SIGKILL when the parent thread ends, and notices if it already has.
///
/// `lifeline` is the reading end of a pipe that the parent holds the other end of.
///
/// # Errors
/// [`JailError::Privilege`], or [`JailError::Parent`] when the parent is gone.
pub fn become_user(uid: u32, gid: u32, lifeline: impl AsFd) -> Result<(), JailError> {
    let refused = |what| {
        move |source: rustix::io::Errno| JailError::Privilege { what, source: source.into() }
    };
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that is older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(refused("gain capabilities")(error)),
        }
    }
    clear_ambient_capability_set().map_err(refused("inherit capabilities"))?;
    set_thread_groups(&[]).map_err(refused("act for a group"))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid).map_err(refused("act for another group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(refused("act for another user"))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(refused("use capabilities"))?;
    set_no_new_privs(true).map_err(refused("execute set-uid programs"))?;
    follow_parent(lifeline).map_err(JailError::Parent)
}

/// Arms the death signal, then makes sure that it was not too late.
fn follow_parent(lifeline: impl AsFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut fds = [PollFd::new(&lifeline, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the parent has ended")),
    }
}

#[cfg(test)]
mod tests;
