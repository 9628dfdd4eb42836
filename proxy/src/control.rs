//! What the proxy says to the shim: JSON on a SEQPACKET socket, one message a packet. The shim says nothing; its end
//! of the connection is all that it has to tell.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};
use serde::{Deserialize, Serialize};

use crate::vsock::{connection::Key, muxer::Announcer};

/// From proxy to shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Jailed and serving.
    Ready {},
    /// The guest has dialled; comes with one descriptor, the shim's end of the stream.
    Connection {
        /// Port of the host.
        port: u32,
        /// Port of the guest.
        guest_port: u32,
    },
    /// The guest holds so many files that soon it can open no more: it should drop its cached names.
    InodePressure {
        /// Descriptors that are open.
        open: u64,
        /// Descriptors that can be.
        limit: u64,
    },
}

/// The proxy's end of the control socket; never blocks a sender.
#[derive(Debug, Clone)]
pub struct Control(Arc<OwnedFd>);

impl Control {
    /// Takes over the inherited socket.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(socket)))
    }

    /// Sends a message with its descriptors.
    ///
    /// # Errors
    /// Those of sendmsg(2); `WouldBlock` when the shim is behind.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        kata_sys::scm::send(&*self.0, &serde_json::to_vec(message)?, fds)
    }

    /// True when the shim has gone, at this moment.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn is_closed(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&*self.0, PollFlags::IN)];
        poll(&mut polled, Some(&rustix::event::Timespec::default()))?;
        Ok(polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Returns when the shim has gone.
    pub fn wait_closed(&self) {
        loop {
            let mut polled = [PollFd::new(&*self.0, PollFlags::empty())];
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

impl Announcer for Control {
    fn announce(&mut self, key: Key, socket: BorrowedFd<'_>) -> io::Result<()> {
        let message = Message::Connection { port: key.port, guest_port: key.guest_port };
        self.send(&message, &[socket])
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use kata_sys::scm;

    use super::{Control, Message};

    #[test]
    fn messages_are_what_the_shim_reads() {
        let text = |message| serde_json::to_string(&message).unwrap();
        assert_eq!(text(Message::Ready {}), r#"{"ready":{}}"#);
        assert_eq!(
            text(Message::Connection { port: 1025, guest_port: 1234 }),
            r#"{"connection":{"port":1025,"guest_port":1234}}"#
        );
        assert_eq!(
            text(Message::InodePressure { open: 15_000, limit: 20_000 }),
            r#"{"inode_pressure":{"open":15000,"limit":20000}}"#
        );
    }

    #[test]
    fn a_shim_that_does_not_read_is_an_error_and_no_wait() {
        let (near, _far) = scm::packet_pair().unwrap();
        let control = Control::new(near).unwrap();
        let failure = std::iter::repeat_with(|| control.send(&Message::Ready {}, &[]))
            .take(100_000)
            .find_map(Result::err);
        assert_eq!(failure.unwrap().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_gone_shim_is_noticed() {
        let (near, far) = scm::packet_pair().unwrap();
        let control = Control::new(near).unwrap();
        assert!(!control.is_closed().unwrap());
        drop(far);
        assert!(control.is_closed().unwrap());
        control.wait_closed();
    }
}
