//! Datagram sockets that carry file descriptors (SEQPACKET with SCM_RIGHTS).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors in one packet; the kernel's own limit is 253.
pub const MAX_FDS: usize = 253;

/// Longest packet that is read whole; a longer one is an error, never a shortened packet.
pub const MAX_PACKET: usize = 64 * 1024;

/// A connected pair of SEQPACKET sockets, close-on-exec.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connected pair of stream sockets, close-on-exec.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet with its descriptors.
///
/// # Errors
/// Those of sendmsg(2): `EPIPE` when the peer is gone (no SIGPIPE is raised), `EAGAIN` on a
/// non-blocking socket whose peer is behind.
pub fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for a packet",
        ));
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One received packet; an empty `bytes` without `fds` is the end of the connection.
#[derive(Debug, Default)]
pub struct Packet {
    /// The payload.
    pub bytes: Vec<u8>,
    /// The descriptors, close-on-exec, in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// True when the peer has closed its end.
    pub fn is_end(&self) -> bool {
        self.bytes.is_empty() && self.fds.is_empty()
    }
}

/// Receives one packet.
///
/// # Errors
/// Those of recvmsg(2); `InvalidData` when the packet or its descriptors did not fit.
pub fn receive(socket: impl AsFd) -> io::Result<Packet> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    // A receive with a timeout is interrupted by a stop and what continues it, too.
    let received = loop {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let cut = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    if received.flags.intersects(cut) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet was cut short"));
    }
    bytes.truncate(received.bytes);
    Ok(Packet { bytes, fds })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
    };

    use super::{packet_pair, receive, send, stream_pair};

    #[test]
    fn a_descriptor_arrives_with_its_packet() {
        let (near, far) = packet_pair().unwrap();
        let (a, b) = stream_pair().unwrap();
        send(&near, b"take this", &[b.as_fd()]).unwrap();
        let mut packet = receive(&far).unwrap();
        assert_eq!(packet.bytes, b"take this");
        File::from(packet.fds.remove(0)).write_all(b"x").unwrap();
        let mut byte = [0];
        File::from(a).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_closed_peer_is_the_end_for_the_reader_and_an_error_for_the_writer() {
        let (near, far) = packet_pair().unwrap();
        drop(far);
        assert!(receive(&near).unwrap().is_end());
        assert!(send(&near, b"x", &[]).is_err());
    }
}
