//! Bytes of a guest that its reader on the host has not taken yet: a bounded ring that costs nothing while empty.

use std::{io, io::IoSlice, os::fd::AsFd};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use vm_memory::VolatileSlice;

/// A ring of fixed capacity, allocated when the first byte comes and freed with the last one.
#[derive(Debug)]
pub struct Backlog {
    ring: Box<[u8]>,
    head: usize,
    len: usize,
    capacity: usize,
}

impl Backlog {
    /// An empty ring for at most `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Box::default(), head: 0, len: 0, capacity }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when none wait.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes of `slices` but for the first `skip` to the end of the ring.
    ///
    /// Bytes beyond the capacity are dropped; the caller has checked the guest's credit, so there are none.
    pub fn append(&mut self, slices: &[VolatileSlice<'_>], mut skip: usize) {
        if self.ring.is_empty() {
            self.ring = vec![0; self.capacity].into_boxed_slice();
        }
        for slice in slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let Ok(mut rest) = slice.offset(skipped) else { continue };
            while !rest.is_empty() && self.len < self.capacity {
                let copied = rest.copy_to(self.vacant());
                self.len += copied;
                match rest.offset(copied) {
                    Ok(behind) => rest = behind,
                    Err(_) => break,
                }
            }
        }
    }

    /// Sends as much as the socket takes and returns how much that was, and why it was no more; never blocks.
    pub fn flush(&mut self, socket: impl AsFd) -> (usize, io::Result<()>) {
        let mut flushed = 0;
        while self.len > 0 {
            let (first, second) = self.waiting();
            let vectors = [IoSlice::new(first), IoSlice::new(second)];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&socket, &vectors, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => {
                    flushed += sent;
                    self.consume(sent);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return (flushed, Err(cause.into())),
            }
        }
        (flushed, Ok(()))
    }

    /// Forgets everything and returns how much that was.
    pub fn discard(&mut self) -> usize {
        let discarded = self.len;
        self.consume(discarded);
        discarded
    }

    /// The contiguous free space behind the last byte.
    fn vacant(&mut self) -> &mut [u8] {
        let tail = (self.head + self.len) % self.capacity;
        let end = if tail < self.head { self.head } else { self.capacity };
        &mut self.ring[tail..end]
    }

    /// The waiting bytes in order.
    fn waiting(&self) -> (&[u8], &[u8]) {
        let end = self.head + self.len;
        if end <= self.capacity {
            (&self.ring[self.head..end], &[])
        } else {
            (&self.ring[self.head..], &self.ring[..end - self.capacity])
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.len -= bytes;
        if self.len == 0 {
            self.ring = Box::default();
            self.head = 0;
        } else {
            self.head = (self.head + bytes) % self.capacity;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io::Read, os::unix::net::UnixStream};

    use proptest::prelude::{any, prop, proptest};

    use super::Backlog;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            capacity in 1usize..50,
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..30), 0usize..30, 0usize..40), 0..60),
        ) {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut backlog = Backlog::new(capacity);
            let mut model = VecDeque::new();
            for (mut bytes, skip, take) in steps {
                let room = capacity - backlog.len();
                let kept: Vec<u8> = bytes.iter().copied().skip(skip).take(room).collect();
                model.extend(kept);
                let middle = bytes.len() / 2;
                let (a, b) = bytes.split_at_mut(middle);
                backlog.append(&[a.into(), b.into()], skip);
                assert_eq!(backlog.len(), model.len());
                if take % 2 == 0 {
                    let flushed = backlog.flush(&near).0;
                    let mut got = vec![0; flushed];
                    far.read_exact(&mut got).unwrap();
                    let wanted: Vec<u8> = model.drain(..).collect();
                    assert_eq!(got, wanted);
                } else {
                    let some = take.min(backlog.len());
                    if some > 0 { backlog.consume(some); }
                    model.drain(..some);
                }
            }
        }
    }

    #[test]
    fn an_emptied_ring_gives_its_memory_back() {
        let mut backlog = Backlog::new(100);
        let mut bytes = [1; 50];
        backlog.append(&[bytes.as_mut_slice().into()], 0);
        assert_eq!(backlog.discard(), 50);
        assert!(backlog.ring.is_empty());
    }
}
