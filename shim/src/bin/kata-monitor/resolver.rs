//! Asks docker's resolver what the guest wants to know: it answers in the network namespace alone, to whoever is in it.
//!
//! ```text
//! stream ── header, message ─► question ── a socket of its own ─► 127.0.0.11:53
//!    ◄───── the same header, answer ──────────────┘ or nothing, after a while
//! ```
//!
//! One thread. Where a question is sent to is fixed: all that the guest chooses is its bytes. No more is read from the stream
//! while enough questions are out, or an answer waits to be written.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use kata_protocol::resolver::{ADDRESS, Header, Transport};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send,
        socket_with,
    },
};

use crate::crew::Crew;

/// Questions that are out.
const MAX_OUT: usize = 64;

/// Docker's resolver asks others, each for so many seconds; who has asked us gives up about then, too.
const PATIENCE: Duration = Duration::from_secs(12);

/// Most bytes of a message, with its length before it as on a connection.
const LONGEST: usize = 2 + u16::MAX as usize;

/// Asks for as long as the guest does.
pub fn serve(crew: &Crew, stream: OwnedFd) -> io::Result<()> {
    ioctl_fionbio(&stream, true)?;
    let mut desk = Desk {
        stream,
        inbox: Vec::new(),
        outbox: Vec::new(),
        out: Vec::new(),
        block: vec![0; LONGEST],
    };
    crew.give(c"resolver", move || {
        // Closing the stream tells the guest.
        desk.run().ok();
    })
}

struct Desk {
    stream: OwnedFd,
    /// Of a question that has come in part.
    inbox: Vec<u8>,
    /// Answers that are not written yet.
    outbox: Vec<u8>,
    out: Vec<Question>,
    block: Vec<u8>,
}

impl Desk {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let (guest, answers) = self.wait()?;
            if guest.contains(PollFlags::OUT) {
                self.write()?;
            }
            if guest.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read()?;
            }
            self.take(&answers);
            let now = Instant::now();
            self.out.retain(|question| !question.is_done() && question.deadline > now);
            self.ask()?;
        }
    }

    fn may_read(&self) -> bool {
        self.out.len() < MAX_OUT && self.outbox.is_empty()
    }

    /// What the stream is ready for, and which questions are for anything.
    fn wait(&self) -> io::Result<(PollFlags, Vec<bool>)> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.may_read());
        interest.set(PollFlags::OUT, !self.outbox.is_empty());
        let questions = self.out.iter().map(|q| PollFd::from_borrowed_fd(q.fd(), q.interest()));
        let mut fds: Vec<_> =
            std::iter::once(PollFd::new(&self.stream, interest)).chain(questions).collect();
        let first = self.out.iter().map(|question| question.deadline).min();
        let timeout = first
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .and_then(|left| Timespec::try_from(left).ok());
        retry_on_intr(|| poll(&mut fds, timeout.as_ref()))?;
        let mut ready = fds.iter().map(PollFd::revents);
        let guest = ready.next().unwrap_or(PollFlags::empty());
        Ok((guest, ready.map(|events| !events.is_empty()).collect()))
    }

    fn read(&mut self) -> io::Result<()> {
        match recv(&self.stream, &mut *self.block, RecvFlags::empty()) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, _)) => {
                self.inbox.extend(&self.block[..length]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match send(&self.stream, &self.outbox, SendFlags::NOSIGNAL) {
            Ok(length) => drop(self.outbox.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sends the questions that have come whole, as many as may be out.
    fn ask(&mut self) -> io::Result<()> {
        while self.out.len() < MAX_OUT {
            let Some((header, rest)) = self.inbox.split_first_chunk() else { return Ok(()) };
            let header = Header::decode(*header).map_err(io::Error::other)?;
            let Some(message) = rest.get(..header.length.into()) else { return Ok(()) };
            // What can't be asked has no answer.
            self.out.extend(Question::ask(header, message).ok());
            self.inbox.drain(..Header::LEN + usize::from(header.length));
        }
        Ok(())
    }

    fn take(&mut self, ready: &[bool]) {
        for (question, _) in self.out.iter_mut().zip(ready).filter(|(_, ready)| **ready) {
            let Some(answer) = question.advance(&mut self.block) else { continue };
            let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
            let header = Header { length, ..question.header }.encode();
            // The guest refuses a header that says nothing.
            if Header::decode(header).is_ok() {
                self.outbox.extend(header);
                self.outbox.extend(answer);
            }
        }
    }
}

/// A question that is out.
struct Question {
    header: Header,
    socket: OwnedFd,
    deadline: Instant,
    state: State,
}

enum State {
    /// Bytes that are to be sent.
    Asking(Vec<u8>),
    /// What has come so far.
    Waiting(Vec<u8>),
    Done,
}

impl Question {
    fn ask(header: Header, message: &[u8]) -> io::Result<Self> {
        let (kind, bytes) = match header.transport {
            Transport::Udp => (SocketType::DGRAM, message.to_vec()),
            Transport::Tcp => {
                (SocketType::STREAM, [&header.length.to_be_bytes(), message].concat())
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
        match connect(&socket, &SocketAddr::V4(ADDRESS)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let deadline = Instant::now() + PATIENCE;
        Ok(Self { header, socket, deadline, state: State::Asking(bytes) })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn interest(&self) -> PollFlags {
        match self.state {
            State::Asking(_) => PollFlags::OUT,
            State::Waiting(_) | State::Done => PollFlags::IN,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Does what its socket is ready for; returns the answer when it is whole.
    fn advance(&mut self, block: &mut [u8]) -> Option<Vec<u8>> {
        match self.step(block) {
            Ok(None) | Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(answer) => {
                self.state = State::Done;
                answer
            }
            // Nobody is there, or hung up.
            Err(_) => {
                self.state = State::Done;
                None
            }
        }
    }

    fn step(&mut self, block: &mut [u8]) -> Result<Option<Vec<u8>>, Errno> {
        match &mut self.state {
            State::Asking(bytes) => {
                let sent = send(&self.socket, bytes, SendFlags::NOSIGNAL)?;
                bytes.drain(..sent);
                if bytes.is_empty() {
                    self.state = State::Waiting(Vec::new());
                }
                Ok(None)
            }
            State::Waiting(so_far) => {
                let (length, _) = recv(&self.socket, &mut *block, RecvFlags::empty())?;
                let got = &block[..length];
                if self.header.transport == Transport::Udp {
                    return Ok(Some(got.to_vec()));
                }
                if length == 0 {
                    return Err(Errno::CONNRESET);
                }
                so_far.extend(got);
                let Some((announced, answer)) = so_far.split_first_chunk() else { return Ok(None) };
                let whole = answer.get(..u16::from_be_bytes(*announced).into());
                Ok(whole.map(<[u8]>::to_vec))
            }
            State::Done => Ok(None),
        }
    }
}
