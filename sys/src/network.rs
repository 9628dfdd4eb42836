//! Network namespaces.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

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

/// Lets a link of the calling thread's network namespace take in all frames to groups, as long as the descriptor is open.
///
/// # Errors
/// Those of socket(2) and setsockopt(2): `EPERM` without CAP_NET_RAW over the network namespace, `ENODEV` without such a link.
pub fn take_all_groups(link: u32) -> io::Result<OwnedFd> {
    // Of no protocol: it gets no frame itself.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let membership = libc::packet_mreq {
        mr_ifindex: link.try_into().map_err(io::Error::other)?,
        mr_type: libc::PACKET_MR_ALLMULTI.try_into().map_err(io::Error::other)?,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&membership)).map_err(io::Error::other)?;
    // SAFETY: `membership` is valid for reads of `length` bytes, its own size, and outlives the call, which only reads it.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            length,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::{enter_new, take_all_groups};

    #[test]
    fn a_link_that_is_there_takes_all_groups_in() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let tried = thread::spawn(|| {
            enter_new().unwrap();
            [1, 2].map(|link| take_all_groups(link).map_err(|error| error.raw_os_error()))
        });
        let [loopback, none] = tried.join().unwrap();
        assert!(loopback.is_ok(), "{loopback:?}");
        assert_eq!(none.unwrap_err(), Some(libc::ENODEV));
    }
}
