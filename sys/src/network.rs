//! Network namespaces.

use std::{io, os::fd::BorrowedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Puts the calling thread, and those that it makes from now on, into a new network namespace, in which nothing is up.
///
/// # Errors
/// Those of unshare(2).
pub fn enter_new() -> io::Result<()> {
    // SAFETY: only the network namespace changes; the table of descriptors (CLONE_FILES) stays shared.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Puts the calling thread, and those that it makes from now on, into the network namespace that `namespace` refers to.
///
/// # Errors
/// Those of setns(2): `EINVAL` when the descriptor is not one of a network namespace.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}
