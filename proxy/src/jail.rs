//! The jail: entered before a byte of the guest is looked at, while the process has one thread.
//!
//! 1. the parent's death becomes ours;
//! 2. new mount, network, IPC and UTS namespaces, still as root of the host: so no mount in them is locked;
//! 3. the shared tree becomes `/`, and everything else is let go. It is a *slave* of the shim's: what is mounted into it
//!    later appears here, and nothing goes the other way. The tmpfs itself, in which the shim makes places as the
//!    host's root, is read-only here; what is attached to it is as it is;
//! 4. a new user namespace with the same ids: what is root here has no power over the namespaces of step 2, and the
//!    seven capabilities that it keeps count for files alone;
//! 5. `no_new_privs`, and a filter that kills the process at the first system call that serving files and streams
//!    does not need ([`filter`]).
//!
//! There is no pid namespace: it would take a second process between the shim and this one. No system call that
//! could name another process is left.

pub mod filter;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use kata_sys::{
    mount_attr::{self, MountAttributes, Reach},
    user_namespace,
};
use rustix::{
    fs::CWD,
    mount::{
        MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        move_mount, open_tree, unmount,
    },
    process::{
        Resource, Rlimit, Signal, chdir, fchdir, getrlimit, pivot_root,
        set_parent_process_death_signal, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    },
};

use crate::{control::Control, serve::Tree};

/// A step into the jail that failed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The shim's death could go unnoticed, or is a fact.
    #[error("cannot follow the shim into its end")]
    Shim(#[source] io::Error),
    /// The limit of open files.
    #[error("cannot raise the limit of open files")]
    Descriptors(#[source] io::Error),
    /// /proc/self/fd.
    #[error("cannot open /proc/self/fd")]
    Proc(#[source] io::Error),
    /// The namespaces but for the user's.
    #[error("cannot leave the host's namespaces")]
    Namespaces(#[source] kata_sys::jail::JailError),
    /// The tree.
    #[error("cannot make the shared tree the root")]
    Tree(#[source] io::Error),
    /// The user namespace.
    #[error("cannot enter a user namespace")]
    User(#[source] io::Error),
    /// Groups, capabilities, `no_new_privs`.
    #[error("cannot give up privileges")]
    Privileges(#[source] io::Error),
    /// seccomp.
    #[error("cannot install the system call filter")]
    Filter(#[source] filter::FilterError),
}

/// What creating files for any owner takes.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);

/// Most open files, whatever the host allows: each one that a guest holds pins an inode, a kilobyte or more of the host's
/// kernel, and half a kilobyte here.
const MAX_DESCRIPTORS: u64 = 65_536;

/// Enters the jail; `tree` is a directory that is the root of a mount.
///
/// # Errors
/// [`JailError`]: the process is then somewhere in between, and has to end.
pub fn enter(tree: OwnedFd, control: &Control) -> Result<Tree, JailError> {
    follow_shim(control).map_err(JailError::Shim)?;
    let descriptors = raise_descriptors().map_err(JailError::Descriptors)?;
    let proc_self_fd =
        [open_proc().map_err(JailError::Proc)?, open_proc().map_err(JailError::Proc)?];
    let own = user_namespace::own_directory().map_err(JailError::User)?;
    let copy = copy_tree(&tree).map_err(JailError::Tree)?;
    drop(tree);
    let namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    kata_sys::jail::leave_namespaces(namespaces).map_err(JailError::Namespaces)?;
    become_root(&copy).map_err(JailError::Tree)?;
    user_namespace::enter_identity(&own).map_err(JailError::User)?;
    drop_privileges().map_err(JailError::Privileges)?;
    filter::install().map_err(JailError::Filter)?;
    Ok(Tree { path: "/".to_owned(), proc_self_fd, descriptors })
}

/// Arms the death signal, then makes sure that it was not too late.
fn follow_shim(control: &Control) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if control.is_closed()? {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the shim has ended"));
    }
    Ok(())
}

/// Sets both limits of open files to the hard one, if that is not beyond reason, and returns it.
fn raise_descriptors() -> io::Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = hard.min(MAX_DESCRIPTORS);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    Ok(limit)
}

/// /proc/self/fd as a mount of its own, which nothing leads out of: the directory itself would lead to all of the host's /proc.
fn open_proc() -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, "/proc/self/fd", flags)?.into())
}

/// A detached copy of the tree with all mounts in it, a slave of the original.
fn copy_tree(tree: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(tree, "", flags)?;
    let set = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let attributes = MountAttributes {
        set: u64::from(set.bits()),
        propagation: u64::from(MountPropagationFlags::DOWNSTREAM.bits()),
        ..MountAttributes::default()
    };
    mount_attr::change(&copy, attributes, Reach::Tree)?;
    let read_only = MountAttributes {
        set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
        ..MountAttributes::default()
    };
    mount_attr::change(&copy, read_only, Reach::Mount)?;
    Ok(copy)
}

fn become_root(copy: &OwnedFd) -> io::Result<()> {
    // Only what is mounted somewhere can become the root; /proc is everywhere, and is not needed any more.
    move_mount(copy.as_fd(), "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(copy)?;
    // The old root lands on top of the new one, at the same place, and is taken off.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn drop_privileges() -> io::Result<()> {
    set_thread_groups(&[])?;
    for capability in (CapabilitySet::all() - CAPABILITIES).iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel that is older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)?;
    Ok(set_no_new_privs(true)?)
}

#[cfg(test)]
mod tests;
