//! Connections that come out of the guest: the agent's own, and the stdio streams.
//!
//! ```text
//! proxy ── connection(port, fd) ─► hello ─┬─ 1024, nonce right, first ─► agent
//!                                         ├─ 1025, token known ────────► whoever waits for the stream
//!                                         └─ anything else ────────────► closed
//! ```
//!
//! Any process of the guest can dial these ports as far as the device is concerned, so nothing is believed before
//! the hello: the nonce proves the agent, a token is good for one connection of one kind.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kata_protocol::{
    AGENT_PORT, STREAM_PORT,
    hello::{AgentHello, BootNonce, HelloError, StreamHello, StreamKind, StreamToken},
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{packet::PacketSocket, proxy::FromProxy};

/// The hello follows the connection at once; a guest under load may take a while to be scheduled.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);

/// Connections whose hello is still out. Ours say it at once: of more than these the oldest is least likely to be one.
const MAX_UNGREETED: usize = 64;

/// So many refusals are told one by one.
const TOLD_REFUSALS: u64 = 8;

/// A guest of which more was refused has its connections taken no closer to each other than [`PACE`]: it can open them for ever, and
/// what takes them has no limit of its own.
const UNPACED_REFUSALS: u64 = 64;

/// See [`UNPACED_REFUSALS`].
const PACE: Duration = Duration::from_millis(10);

/// Why a connection from the guest was closed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum GreetError {
    #[error("take over the connection")]
    Connection(#[source] io::Error),
    #[error("read the hello")]
    Read(#[source] io::Error),
    #[error("no hello came within 30 s")]
    Silent,
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the boot nonce is wrong, or the agent has greeted before")]
    Nonce,
    #[error("no process waits for this stream")]
    Token,
    #[error("the sandbox is ending")]
    Ending,
    #[error("too many connections without a hello")]
    TooMany,
    #[error("port {0} is not served")]
    Port(u32),
}

/// The agent's connection, or why a greeting that claimed to be the agent's failed for good (a version that does not fit).
pub type AgentConnection = Result<UnixStream, HelloError>;

/// Where connections are matched with those who wait for them.
#[derive(Debug)]
pub struct Switchboard {
    nonce: BootNonce,
    agent: Mutex<Option<oneshot::Sender<AgentConnection>>>,
    streams: Mutex<HashMap<(StreamToken, StreamKind), oneshot::Sender<OwnedFd>>>,
    ungreeted: Mutex<Ungreeted>,
    /// Connections that were closed.
    refused: AtomicU64,
}

impl Switchboard {
    /// A switchboard, and where the agent's connection will arrive.
    pub fn new(nonce: BootNonce) -> (Arc<Self>, oneshot::Receiver<AgentConnection>) {
        let (sender, receiver) = oneshot::channel();
        let board = Self {
            nonce,
            agent: Mutex::new(Some(sender)),
            streams: Mutex::default(),
            ungreeted: Mutex::default(),
            refused: AtomicU64::new(0),
        };
        (Arc::new(board), receiver)
    }

    /// Expects one stream; the receiver fails when the sandbox ends before it came.
    pub fn expect(&self, token: StreamToken, kind: StreamKind) -> oneshot::Receiver<OwnedFd> {
        let (sender, receiver) = oneshot::channel();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that a guest never sent, and nobody waits for any more.
        streams.retain(|_, waiting| !waiting.is_closed());
        streams.insert((token, kind), sender);
        receiver
    }

    /// Expects the streams of a token no more.
    pub fn forget(&self, token: StreamToken) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|(known, _), _| *known != token);
    }

    /// Serves the proxy's messages until it is gone; `pressure` is called when the guest should drop inodes.
    pub async fn serve(self: Arc<Self>, control: PacketSocket, pressure: impl Fn()) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.refused.load(Ordering::Relaxed) > UNPACED_REFUSALS {
                pace.tick().await;
            }
            match control.receive::<FromProxy>().await {
                Ok(Some((FromProxy::Connection { port, guest_port }, fds))) => {
                    self.clone().take(port, guest_port, fds);
                }
                Ok(Some((FromProxy::InodePressure { open, limit }, _))) => {
                    tracing::debug!(open, limit, "guest caches too many inodes");
                    pressure();
                }
                Ok(Some((FromProxy::Ready {}, _))) => tracing::debug!("proxy is ready"),
                Ok(None) => break,
                // The guest sees the end of that stream.
                Err(error) if error.is_of_one_packet() => {
                    tracing::warn!(%error, "message of the proxy is lost");
                }
                Err(error) => {
                    tracing::warn!(%error, "message of the proxy");
                    break;
                }
            }
        }
    }

    fn take(self: Arc<Self>, port: u32, guest_port: u32, fds: Vec<OwnedFd>) {
        let Some(fd) = fds.into_iter().next() else { return };
        let (number, given_up) = self.ungreeted().add();
        tokio::spawn(async move {
            let greeted = tokio::select! {
                // A hello that is there counts, however many are behind it.
                biased;
                greeted = self.greet(port, fd) => greeted,
                _ = given_up => Err(GreetError::TooMany),
            };
            self.ungreeted().remove(number);
            if let Err(error) = greeted {
                self.refuse(port, guest_port, &error);
            }
        });
    }

    fn ungreeted(&self) -> MutexGuard<'_, Ungreeted> {
        self.ungreeted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a closed connection: of the first ones, and then of each power of two, for a guest can open them for ever.
    fn refuse(&self, port: u32, guest_port: u32, error: &GreetError) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= TOLD_REFUSALS || count.is_power_of_two() {
            tracing::warn!(port, guest_port, count, %error, "connection from the guest is closed");
        }
    }

    async fn greet(&self, port: u32, fd: OwnedFd) -> Result<(), GreetError> {
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true).map_err(GreetError::Connection)?;
        let stream = UnixStream::from_std(stream).map_err(GreetError::Connection)?;
        match port {
            AGENT_PORT => self.greet_agent(stream).await,
            STREAM_PORT => self.greet_stream(stream).await,
            port => Err(GreetError::Port(port)),
        }
    }

    async fn greet_agent(&self, mut stream: UnixStream) -> Result<(), GreetError> {
        let mut wire = [0; AgentHello::LEN];
        read(&mut stream, &mut wire).await?;
        let greeting = match AgentHello::decode(&wire) {
            Ok(hello) if hello.nonce != self.nonce => return Err(GreetError::Nonce),
            Ok(_) => Ok(stream),
            Err(e @ HelloError::Version { .. }) => Err(e),
            Err(e) => return Err(e.into()),
        };
        let waiting = self.agent.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sender = waiting.ok_or(GreetError::Nonce)?;
        // The receiver is gone only when the sandbox is ending.
        sender.send(greeting).map_err(|_| GreetError::Ending)
    }

    async fn greet_stream(&self, mut stream: UnixStream) -> Result<(), GreetError> {
        let mut wire = [0; StreamHello::LEN];
        read(&mut stream, &mut wire).await?;
        let hello = StreamHello::decode(&wire)?;
        let sender = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.remove(&(hello.token, hello.kind)).ok_or(GreetError::Token)?
        };
        let stream = stream.into_std().map_err(GreetError::Connection)?;
        // Whoever gets it may want to block.
        stream.set_nonblocking(false).map_err(GreetError::Connection)?;
        sender.send(stream.into()).map_err(|_| GreetError::Token)
    }
}

/// Connections whose hello is still out, the oldest first; one whose sender is gone is given up.
#[derive(Debug, Default)]
struct Ungreeted {
    added: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Infallible>)>,
}

impl Ungreeted {
    /// Takes one more, if need be in the place of the oldest; returns its number, and what ends when it is given up.
    fn add(&mut self) -> (u64, oneshot::Receiver<Infallible>) {
        if self.waiting.len() >= MAX_UNGREETED {
            self.waiting.pop_front();
        }
        let (sender, given_up) = oneshot::channel();
        self.added += 1;
        self.waiting.push_back((self.added, sender));
        (self.added, given_up)
    }

    fn remove(&mut self, number: u64) {
        self.waiting.retain(|(waiting, _)| *waiting != number);
    }
}

async fn read(stream: &mut UnixStream, wire: &mut [u8]) -> Result<(), GreetError> {
    timeout(HELLO_DEADLINE, stream.read_exact(wire))
        .await
        .map_err(|_| GreetError::Silent)?
        .map_err(GreetError::Read)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    use kata_protocol::{
        AGENT_PORT, STREAM_PORT,
        hello::{AgentHello, StreamHello, StreamKind},
    };

    use super::{GreetError, MAX_UNGREETED, Switchboard};

    /// A guest program that says `words` first.
    fn connection(words: &[u8]) -> (UnixStream, OwnedFd) {
        let (mut guest, host) = UnixStream::pair().unwrap();
        guest.write_all(words).unwrap();
        (guest, host.into())
    }

    #[tokio::test]
    async fn only_the_nonce_makes_an_agent_and_only_once() {
        let (board, agent) = Switchboard::new([1; 32]);
        let (_stranger, fd) = connection(&AgentHello { nonce: [2; 32] }.encode());
        assert!(matches!(board.greet(AGENT_PORT, fd).await, Err(GreetError::Nonce)));
        let hello = AgentHello { nonce: [1; 32] }.encode();
        let (_first, fd) = connection(&hello);
        board.greet(AGENT_PORT, fd).await.unwrap();
        agent.await.unwrap().unwrap();
        let (_second, fd) = connection(&hello);
        assert!(matches!(board.greet(AGENT_PORT, fd).await, Err(GreetError::Nonce)));
    }

    #[tokio::test]
    async fn a_token_is_good_for_one_connection_of_its_kind() {
        let (board, _agent) = Switchboard::new([0; 32]);
        let stdout = board.expect([5; 16], StreamKind::Stdout);
        let (_a, fd) =
            connection(&StreamHello { kind: StreamKind::Stderr, token: [5; 16] }.encode());
        assert!(matches!(board.greet(STREAM_PORT, fd).await, Err(GreetError::Token)));
        let hello = StreamHello { kind: StreamKind::Stdout, token: [5; 16] }.encode();
        let (_b, fd) = connection(&hello);
        board.greet(STREAM_PORT, fd).await.unwrap();
        stdout.await.unwrap();
        let (_c, fd) = connection(&hello);
        assert!(matches!(board.greet(STREAM_PORT, fd).await, Err(GreetError::Token)));
    }

    #[tokio::test]
    async fn silent_connections_keep_none_out_that_speaks() {
        let (board, _agent) = Switchboard::new([0; 32]);
        let mut silent = Vec::new();
        for _ in 0..=MAX_UNGREETED {
            let (guest, fd) = connection(b"");
            board.clone().take(STREAM_PORT, 0, vec![fd]);
            silent.push(guest);
            tokio::task::yield_now().await;
        }
        let stdout = board.expect([5; 16], StreamKind::Stdout);
        let hello = StreamHello { kind: StreamKind::Stdout, token: [5; 16] }.encode();
        let (_speaks, fd) = connection(&hello);
        board.clone().take(STREAM_PORT, 0, vec![fd]);
        stdout.await.unwrap();
        // The oldest two are closed, and no other.
        for (number, mut guest) in silent.into_iter().enumerate() {
            guest.set_nonblocking(true).unwrap();
            let closed = guest.read(&mut [0]).is_ok();
            assert_eq!(closed, number < 2, "{number}");
        }
        assert_eq!(board.ungreeted().waiting.len(), MAX_UNGREETED - 1);
    }

    #[tokio::test]
    async fn unserved_ports_and_forgotten_tokens_are_closed() {
        let (board, _agent) = Switchboard::new([0; 32]);
        let (_a, fd) = connection(b"x");
        assert!(matches!(board.greet(22, fd).await, Err(GreetError::Port(22))));
        let waiting = board.expect([5; 16], StreamKind::Stdin);
        board.forget([5; 16]);
        assert!(waiting.await.is_err());
    }
}
