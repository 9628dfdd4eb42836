//! Bytes between a client on localhost and its stream to the guest, without blocking.
//!
//! A direction that can't write what it has read reads no more, and holds a block at most; so who does not read stops who
//! writes. The end of file of one end becomes a half-close of the other. An end that breaks off is a reset for both.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt::socket_error},
};

/// What one direction holds at most.
pub const BLOCK: usize = 16 * 1024;

/// Blocks that one connection may move before others have their turn.
const TURN: usize = 8;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There will be an event when it can go on.
    Blocked,
    /// It can go on.
    Moving,
    /// Both directions have ended.
    Over,
    /// One end has broken off.
    Reset,
}

/// Where bytes pass through, for all connections.
pub type Block = [u8; BLOCK];

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read and not written yet.
    rest: Vec<u8>,
    over: bool,
}

/// A connection with both its ends, which do not block.
#[derive(Debug)]
pub struct Relay {
    client: OwnedFd,
    stream: OwnedFd,
    to_guest: Flow,
    to_client: Flow,
}

impl Relay {
    /// Nothing has moved yet.
    pub fn new(client: OwnedFd, stream: OwnedFd) -> Self {
        Self { client, stream, to_guest: Flow::default(), to_client: Flow::default() }
    }

    /// The client's end alone.
    pub fn into_client(self) -> OwnedFd {
        self.client
    }

    /// Moves what can be moved, up to a bound.
    pub fn advance(&mut self, block: &mut Block) -> State {
        let up = self.to_guest.advance(&self.client, &self.stream, self.to_client.over, block);
        let down = self.to_client.advance(&self.stream, &self.client, self.to_guest.over, block);
        match (up, down) {
            (Err(_), _) | (_, Err(_)) => State::Reset,
            // From a client that has said all nothing is read any more that would tell.
            _ if self.to_guest.over && has_broken_off(&self.client) => State::Reset,
            _ if self.to_guest.over && self.to_client.over => State::Over,
            (Ok(false), Ok(false)) => State::Blocked,
            _ => State::Moving,
        }
    }
}

impl Flow {
    /// Moves bytes until the end, or until nothing goes (false), or for a turn (true); `alone` says that the other
    /// direction is over.
    fn advance(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        alone: bool,
        block: &mut Block,
    ) -> Result<bool, Errno> {
        for _ in 0..TURN {
            if self.over {
                return Ok(false);
            }
            let written = write_some(to, &self.rest)?;
            self.rest.drain(..written);
            if !self.rest.is_empty() {
                return Ok(false);
            }
            // What is idle holds nothing.
            self.rest = Vec::new();
            match recv(from, &mut *block, RecvFlags::empty()) {
                Ok((0, _)) => {
                    // Sending nothing tells whether anybody would read it: who closes both halves at once breaks off.
                    if !alone {
                        send(from, &[], SendFlags::NOSIGNAL)?;
                    }
                    shutdown(to, Shutdown::Write)?;
                    self.over = true;
                }
                Ok((length, _)) => {
                    let bytes = &block[..length];
                    self.rest.extend(&bytes[write_some(to, bytes)?..]);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn has_broken_off(socket: &OwnedFd) -> bool {
    // A socket that can't be asked is of no use either.
    !matches!(socket_error(socket), Ok(Ok(())))
}

/// Writes until all is written or nothing goes.
fn write_some(to: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    let mut written = 0;
    while written < bytes.len() {
        match send(to, &bytes[written..], SendFlags::NOSIGNAL) {
            Ok(length) => written += length,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        os::unix::net::UnixStream,
        time::Duration,
    };

    use rustix::{
        event::{PollFd, PollFlags, poll},
        net::sockopt::set_socket_linger,
    };

    use super::{BLOCK, Relay, State};

    /// A relay between the two outer ends.
    fn relay() -> (Relay, UnixStream, UnixStream) {
        let (client, inner_client) = UnixStream::pair().unwrap();
        let (guest, inner_guest) = UnixStream::pair().unwrap();
        for end in [&client, &guest, &inner_client, &inner_guest] {
            end.set_nonblocking(true).unwrap();
        }
        (Relay::new(inner_client.into(), inner_guest.into()), client, guest)
    }

    fn run(relay: &mut Relay) -> State {
        let mut block = [0; BLOCK];
        loop {
            match relay.advance(&mut block) {
                State::Moving => {}
                state => return state,
            }
        }
    }

    #[test]
    fn a_half_close_is_passed_on_behind_the_last_byte_and_the_other_way_stays_open() {
        let (mut relay, mut client, mut guest) = relay();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(run(&mut relay), State::Blocked);
        let mut question = String::new();
        guest.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        guest.write_all(b"answer").unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        assert_eq!(run(&mut relay), State::Over);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn who_does_not_read_stops_who_writes_and_loses_nothing() {
        let (mut relay, mut client, mut guest) = relay();
        let mut sent = 0;
        loop {
            match guest.write(&[7; 4096]) {
                Ok(length) => sent += length,
                Err(_) if relay.advance(&mut [0; BLOCK]) == State::Blocked => break,
                Err(_) => {}
            }
        }
        let mut got = 0;
        let mut buffer = vec![0; 1 << 16];
        while got < sent {
            if let Ok(length) = client.read(&mut buffer) {
                got += length;
            }
            assert_ne!(run(&mut relay), State::Reset);
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn an_end_that_breaks_off_is_a_reset() {
        let (mut relay, client, mut guest) = relay();
        guest.write_all(b"half an ans").unwrap();
        drop(guest);
        assert_eq!(run(&mut relay), State::Reset);
        drop(client);
    }
    #[test]
    fn a_client_that_breaks_off_after_its_last_byte_is_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (inner_client, _) = listener.accept().unwrap();
        let (_guest, inner_guest) = UnixStream::pair().unwrap();
        inner_client.set_nonblocking(true).unwrap();
        inner_guest.set_nonblocking(true).unwrap();
        let mut relay = Relay::new(inner_client.into(), inner_guest.into());
        client.shutdown(Shutdown::Write).unwrap();
        poll(&mut [PollFd::new(&relay.client, PollFlags::IN)], None).unwrap();
        assert_eq!(run(&mut relay), State::Blocked);
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        poll(&mut [PollFd::new(&relay.client, PollFlags::empty())], None).unwrap();
        assert_eq!(run(&mut relay), State::Reset);
    }
}
