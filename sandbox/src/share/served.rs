//! What is attached, as the proxy has it: in its own mount namespace, to which attributes do not spread.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
};

use kata_sys::{
    jail::leave_namespaces,
    mount_attr::{self, MountAttributes, Reach},
    spawn::Child,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    mount::MountAttrFlags,
    thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces},
};

/// Lets the mount at `path` below a directory be written to. No link is followed.
pub(super) fn allow_writing(directory: &OwnedFd, path: &Path) -> io::Result<()> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mount = openat2(directory, path, flags, Mode::empty(), inside)?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let attributes = MountAttributes { clear: read_only.into(), ..MountAttributes::default() };
    // Fails on what is no mount's root.
    mount_attr::change(&mount, attributes, Reach::Mount)
}

/// Runs `work` with the root of a process's mount namespace. A thread of its own enters that, which needs this process's privileges there:
/// a proxy's user namespace is younger than its mounts, so they are the host's.
pub(super) fn in_namespace_of(
    process: &Child,
    work: impl FnOnce(&OwnedFd) -> io::Result<()> + Send,
) -> io::Result<()> {
    let inside = || {
        leave_namespaces(UnshareFlags::FS).map_err(io::Error::other)?;
        move_into_thread_name_spaces(process.pidfd.as_fd(), ThreadNameSpaceType::MOUNT)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        work(&openat(CWD, "/", flags, Mode::empty())?)
    };
    let panicked = |_| io::Error::other("the thread panicked");
    thread::scope(|scope| {
        thread::Builder::new()
            .name("proxy's mounts".into())
            .spawn_scoped(scope, inside)?
            .join()
            .map_err(panicked)?
    })
}
