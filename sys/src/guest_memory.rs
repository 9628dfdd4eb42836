//! Socket transfers straight between a stream socket and guest memory, without a copy in between.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd},
};

use vm_memory::VolatileSlice;

/// Most slices that one transfer uses; those behind are left for the next one.
pub const MAX_SLICES: usize = 64;

/// Sends the bytes of `slices` in order and returns how many the socket took. Never blocks, never raises SIGPIPE.
///
/// # Errors
/// Those of sendmsg(2): `WouldBlock` when the socket takes nothing, `EPIPE` when nobody will ever read.
pub fn send(socket: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vectors = Vectors::new(slices);
    let message = vectors.message();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to at most MAX_SLICES initialised iovecs, and each of these to the bytes of a
    // VolatileSlice, which are mapped for the lifetime of `slices`. The guest may change these bytes while the
    // kernel reads them; no Rust reference to them exists.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Fills `slices` in order with what the socket has and returns how many bytes that was; 0 is the end of the stream.
/// Never blocks.
///
/// # Errors
/// Those of recvmsg(2): `WouldBlock` when the socket has nothing.
pub fn receive(socket: impl AsFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut vectors = Vectors::new(slices);
    let mut message = vectors.message();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: as in `send`; the slices are writable mappings (a VolatileSlice allows writes through a shared
    // reference), and without a control buffer the kernel discards descriptors that a peer may pass.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// The iovecs of one transfer; on the stack, as transfers are the hot path.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; MAX_SLICES],
    count: usize,
}

impl Vectors {
    fn new(slices: &[VolatileSlice<'_>]) -> Self {
        let mut entries = [MaybeUninit::uninit(); MAX_SLICES];
        let count = slices.len().min(MAX_SLICES);
        for (entry, slice) in entries.iter_mut().zip(slices) {
            // The guard does nothing where guest memory is mapped for good, which is everywhere but on Xen.
            entry.write(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Self { entries, count }
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: msghdr is a plain C struct, for which all zeroes mean: no name, no vectors, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.entries.as_mut_ptr().cast();
        message.msg_iovlen = self.count;
        message
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use vm_memory::VolatileSlice;

    use super::{MAX_SLICES, receive, send};

    #[test]
    fn bytes_arrive_in_the_order_of_the_slices() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (*b"split ", *b"packet");
        let sent = send(&near, &[a.as_mut_slice().into(), b.as_mut_slice().into()]).unwrap();
        assert_eq!(sent, 12);
        let mut text = [0; 12];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"split packet");
    }

    #[test]
    fn receive_fills_one_slice_after_the_other() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"0123456").unwrap();
        let (mut a, mut b) = ([0; 4], [0; 8]);
        let got = receive(&near, &[a.as_mut_slice().into(), b.as_mut_slice().into()]).unwrap();
        assert_eq!((got, &a, &b), (7, b"0123", b"456\0\0\0\0\0"));
    }

    #[test]
    fn more_slices_than_fit_are_a_short_transfer() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut bytes = [7; MAX_SLICES + 9];
        let slices: Vec<VolatileSlice<'_>> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
        assert_eq!(send(&near, &slices).unwrap(), MAX_SLICES);
    }

    #[test]
    fn a_gone_peer_is_an_error_and_not_a_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut byte = [0];
        let failure = send(&near, &[byte.as_mut_slice().into()]).unwrap_err();
        assert_eq!(failure.kind(), std::io::ErrorKind::BrokenPipe);
    }
}
