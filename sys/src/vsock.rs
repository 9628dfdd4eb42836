//! Stream sockets between a guest and its host (`AF_VSOCK`).

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Context id of the host, as every guest sees it.
pub const HOST_CID: u32 = 2;

/// Longest that a connection may take to be made. The host answers at once, so what passes is time in which the VM, or the
/// host's end of it, was stopped or got no processor: of that the kernel's own 2 s are soon used up.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Of `linux/vm_sockets.h`; its value is a `timeval`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// Begins to connect to `port` of `cid`; the socket is non-blocking and close-on-exec.
///
/// The connection is made, or has failed, once the socket is writable; SO_ERROR says which.
///
/// # Errors
/// Those of socket(2) and connect(2); `EINPROGRESS` is none.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    be_patient(&socket)?;
    // SAFETY: sockaddr_vm is plain integers, for which all-zero is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    // SAFETY: the address is initialised, outlives the call, and the length is its own.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(socket);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        error => Err(error),
    }
}

fn be_patient(socket: &OwnedFd) -> io::Result<()> {
    let limit = libc::timeval { tv_sec: PATIENCE.as_secs().cast_signed(), tv_usec: 0 };
    // SAFETY: the value is initialised, outlives the call, and the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{mem::size_of, os::fd::AsRawFd};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::{PATIENCE, SO_VM_SOCKETS_CONNECT_TIMEOUT, be_patient};

    #[test]
    fn a_connection_is_given_as_long_as_that() {
        let made =
            socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let Ok(socket) = made else {
            println!("SKIP no sockets of AF_VSOCK here");
            return;
        };
        be_patient(&socket).unwrap();
        let mut limit = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let mut length = size_of::<libc::timeval>() as libc::socklen_t;
        // SAFETY: value and length outlive the call, which writes no more than that length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                SO_VM_SOCKETS_CONNECT_TIMEOUT,
                (&raw mut limit).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0);
        assert_eq!(limit.tv_sec.cast_unsigned(), PATIENCE.as_secs());
    }
}
