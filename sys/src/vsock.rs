//! Stream sockets between a guest and its host (`AF_VSOCK`).

use std::{io, mem::size_of, os::fd::AsRawFd, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Context id of the host, as every guest sees it.
pub const HOST_CID: u32 = 2;

/// Begins to connect to `port` of `cid`; the socket is non-blocking and close-on-exec.
///
/// The connection is made, or has failed, once the socket is writable; SO_ERROR says which.
///
/// # Errors
/// Those of socket(2) and connect(2); `EINPROGRESS` is none.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
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
