//! Readiness of any descriptor in a tokio runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Watches a descriptor; the calling thread is inside a tokio runtime with I/O enabled.
///
/// # Errors
/// Those of epoll_ctl(2): `EPERM` for a regular file.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names the same description until it is dropped, and it is moved into the
    // `AsyncFd`, which gives out no way to replace it other than consuming or mutably borrowing the whole.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
