//! Sockets for addresses that are not the host's.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Lets a socket of the Internet be bound to an address that the host does not have, and take connections that a rule of the
/// packet filter has steered to it.
///
/// # Errors
/// Those of setsockopt(2): `EPERM` without CAP_NET_ADMIN over the network namespace; `EINVAL` for a family that is neither.
pub fn allow(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let (level, option) = match ipv6 {
        true => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
        false => (libc::SOL_IP, libc::IP_TRANSPARENT),
    };
    let value: libc::c_int = 1;
    let length = size_of::<libc::c_int>();
    let length = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for reads of `length` bytes, its own size, and outlives the call, which only reads it.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
