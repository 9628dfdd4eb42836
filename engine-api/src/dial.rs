//! Unix sockets inside an open directory.
//!
//! A socket address holds 107 bytes, and the directory of a sandbox may lie deeper. The kernel resolves
//! `/proc/self/fd/DIR/NAME` like any path, which is short whatever the directory's own path is, and which can't be led
//! astray when somebody renames the directory meanwhile.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// File name of the socket with containerd's Task service.
pub const SHIM_SOCKET: &str = "shim.sock";

/// File name of the socket for [`crate::handover`].
pub const HANDOVER_SOCKET: &str = "handover.sock";

/// Connections that may wait for the shim to start; one is enough for an engine, more are tests and impatient people.
const BACKLOG: i32 = 64;

/// A shim takes connections within milliseconds. One that is stopped takes none, and those that wait for it block the next.
const ACCEPTANCE: Duration = Duration::from_secs(5);

/// Connects to the stream socket `name` in `dir`; blocking, close-on-exec.
///
/// # Errors
/// Those of connect(2): `NotFound` when there is no such file, `ConnectionRefused` when nobody listens any more,
/// `WouldBlock` when whoever listens takes no connections.
pub fn connect_stream(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixStream> {
    Ok(dial(SocketType::STREAM, &path_inside(dir, name)?, ACCEPTANCE)?.into())
}

/// Makes the stream socket `name` in `dir` and listens on it.
///
/// # Errors
/// Those of bind(2): `AddrInUse` when the file exists.
pub fn bind_stream(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixListener> {
    UnixListener::bind(path_inside(dir, name)?)
}

/// Connects to the SEQPACKET socket `name` in `dir`; blocking, close-on-exec.
///
/// # Errors
/// As [`connect_stream`].
pub fn connect_packet(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    dial(SocketType::SEQPACKET, &path_inside(dir, name)?, ACCEPTANCE)
}

fn dial(kind: SocketType, path: &str, acceptance: Duration) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(acceptance))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Makes the SEQPACKET socket `name` in `dir` and listens on it; blocking, close-on-exec.
///
/// # Errors
/// As [`bind_stream`].
pub fn bind_packet(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    bind(&socket, &SocketAddrUnix::new(path_inside(dir, name)?)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes the next connection of a listening socket, close-on-exec.
///
/// # Errors
/// Those of accept(2).
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC)?)
}

fn packet_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn path_inside(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    if name.is_empty() || name.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file name"));
    }
    Ok(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{self, Read, Write},
        os::fd::AsFd,
        time::Duration,
    };

    use kata_sys::scm;

    use rustix::net::SocketType;

    use super::{
        accept, bind_packet, bind_stream, connect_packet, connect_stream, dial, path_inside,
    };

    /// A directory whose path is far longer than a socket address.
    fn deep_directory(root: &tempfile::TempDir) -> File {
        let deep = root.path().join("d".repeat(200));
        fs::create_dir(&deep).unwrap();
        File::open(deep).unwrap()
    }

    #[test]
    fn stream_sockets_work_below_a_path_longer_than_an_address() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep_directory(&root);
        let listener = bind_stream(dir.as_fd(), "s").unwrap();
        let mut near = connect_stream(dir.as_fd(), "s").unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn packets_keep_their_borders() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep_directory(&root);
        let listener = bind_packet(dir.as_fd(), "p").unwrap();
        let near = connect_packet(dir.as_fd(), "p").unwrap();
        let far = accept(&listener).unwrap();
        scm::send(&near, b"one", &[]).unwrap();
        scm::send(&near, b"two", &[]).unwrap();
        assert_eq!(scm::receive(&far).unwrap().bytes, b"one");
        assert_eq!(scm::receive(&far).unwrap().bytes, b"two");
    }

    #[test]
    fn absent_and_abandoned_sockets_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep_directory(&root);
        let absent = connect_stream(dir.as_fd(), "s").unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        drop(bind_stream(dir.as_fd(), "s").unwrap());
        let abandoned = connect_stream(dir.as_fd(), "s").unwrap_err();
        assert_eq!(abandoned.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn one_who_takes_no_connections_is_not_waited_for_in_vain() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep_directory(&root);
        let _listener = bind_packet(dir.as_fd(), "p").unwrap();
        let mut taken = Vec::new();
        let path = path_inside(dir.as_fd(), "p").unwrap();
        let refused = loop {
            match dial(SocketType::SEQPACKET, &path, Duration::from_millis(1)) {
                Ok(socket) => taken.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = deep_directory(&root);
        let refused = connect_stream(dir.as_fd(), "../s").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
