//! Attributes of whole mount trees (mount_setattr(2)).

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// What to change, as `MOUNT_ATTR_*` bits and a propagation type (`MS_PRIVATE` and its like; 0 keeps it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// New propagation type.
    pub propagation: u64,
}

/// Which mounts a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The one mount.
    Mount,
    /// The mount and every one below it.
    Tree,
}

/// Shows the owners of files by the maps of a user namespace: an id inside of it as the one outside.
///
/// # Errors
/// Those of mount_setattr(2): `EINVAL` where the file system can't be id-mapped, as overlay, or the mount is attached.
pub fn map_ids(mount: impl AsFd, namespace: impl AsFd, reach: Reach) -> io::Result<()> {
    // A descriptor is never negative.
    let user_namespace = namespace.as_fd().as_raw_fd() as u64;
    set(
        mount.as_fd(),
        &Wire { set: libc::MOUNT_ATTR_IDMAP, user_namespace, ..Wire::default() },
        reach,
    )
}

/// `struct mount_attr` of `linux/mount.h`.
#[derive(Default)]
#[repr(C)]
struct Wire {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Changes the attributes of the mount that `mount` is the root of.
///
/// # Errors
/// Those of mount_setattr(2): `EINVAL` when `mount` is not the root of a mount.
pub fn change(mount: impl AsFd, attributes: MountAttributes, reach: Reach) -> io::Result<()> {
    let wire = Wire {
        set: attributes.set,
        clear: attributes.clear,
        propagation: attributes.propagation,
        user_namespace: 0,
    };
    set(mount.as_fd(), &wire, reach)
}

fn set(mount: BorrowedFd<'_>, wire: &Wire, reach: Reach) -> io::Result<()> {
    let recursive = if reach == Reach::Tree { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated, the attributes are plain integers of the given size, and both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(wire),
            size_of::<Wire>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
