//! Connections to localhost of the network namespace, passed on to the guest.
//!
//! ```text
//! accepted ── Dial ─► waiting ── Dialled with a stream ─► joined ── both directions over, or a reset ─► closed
//!                        └────── Dialled without one ── reset ─► closed
//! ```
//!
//! One thread, which begins with the first connection's listeners and ends with the process. What it accepts it announces to
//! the shim; the main thread hands it the answers, through a queue and a bell. When there are as many connections as
//! there may be, the next ones wait in the listeners' backlogs.
//!
//! Sockets of joined connections are watched edge-triggered, so whoever has had news is moved until it can't go on; for
//! the sake of the others, only so far at a time.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use kata_engine_api::control::{Dial, ToShim};
use kata_protocol::resolver;
use kata_sys::scm;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::{Errno, ioctl_fionbio},
    net::{
        SocketFlags, accept_with, getsockname,
        sockopt::{set_socket_linger, set_tcp_nodelay},
    },
};

use crate::{
    crew::Crew,
    flow::Bell,
    relay::{BLOCK, Block, Relay, State},
};

/// Connections at once, waiting ones included: two descriptors each, of the 1024 that a process mostly may have.
const MAX_CONNECTIONS: usize = 256;

/// What epoll gives at once.
const EVENTS: usize = 64;

/// So long nobody is taken when this process, or the host, has no descriptors or no memory.
const REST: Duration = Duration::from_millis(100);

/// Watched besides connections, whose data is their number and a bit for the guest's end.
const BELL: u64 = u64::MAX;
const FIRST_LISTENER: u64 = u64::MAX - 16;

/// The main thread's end.
pub struct Localhost {
    answers: mpsc::Sender<(u64, Option<OwnedFd>)>,
    bell: Arc<Bell>,
}

impl Localhost {
    /// Starts to take connections; they are announced on `control`.
    pub fn serve(crew: &Crew, listeners: Vec<OwnedFd>, control: OwnedFd) -> io::Result<Self> {
        let (answers, waiting) = mpsc::channel();
        let bell = Arc::new(Bell::new()?);
        let mut keeper = Keeper::new(listeners, control, (waiting, Arc::clone(&bell)))?;
        crew.give(c"localhost", move || {
            // Without it nobody is let in any more: the listeners are closed.
            keeper.run().ok();
        })?;
        Ok(Self { answers, bell })
    }

    /// Tells what became of a connection.
    pub fn dialled(&self, number: u64, stream: Option<OwnedFd>) {
        // A thread that is gone has closed its connections.
        self.answers.send((number, stream)).ok();
        self.bell.ring();
    }
}

/// The thread's state.
struct Keeper {
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    /// Whether the listeners are watched.
    listening: bool,
    /// When there may be room again.
    resting: Option<Instant>,
    control: OwnedFd,
    answers: mpsc::Receiver<(u64, Option<OwnedFd>)>,
    bell: Arc<Bell>,
    next: u64,
    waiting: HashMap<u64, OwnedFd>,
    joined: HashMap<u64, Relay>,
    /// Those that may be able to go on.
    lively: HashSet<u64>,
    block: Box<Block>,
}

impl Keeper {
    fn new(
        listeners: Vec<OwnedFd>,
        control: OwnedFd,
        (answers, bell): (mpsc::Receiver<(u64, Option<OwnedFd>)>, Arc<Bell>),
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*bell, EventData::new_u64(BELL), EventFlags::IN)?;
        for (listener, data) in listeners.iter().zip(FIRST_LISTENER..) {
            ioctl_fionbio(listener, true)?;
            epoll::add(&epoll, listener, EventData::new_u64(data), EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            listeners,
            listening: true,
            resting: None,
            control,
            answers,
            bell,
            next: 0,
            waiting: HashMap::new(),
            joined: HashMap::new(),
            lively: HashSet::new(),
            block: Box::new([0; BLOCK]),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(EVENTS);
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let rest = self.resting.map(|until| until.saturating_duration_since(Instant::now()));
            let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
            let timeout = if self.lively.is_empty() { rest } else { Some(now) };
            buffer.clear();
            let space = rustix::buffer::spare_capacity(&mut buffer);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for Event { data, .. } in buffer.drain(..) {
                match data.u64() {
                    BELL => self.take_answers(),
                    data if data >= FIRST_LISTENER => self.accept(data - FIRST_LISTENER)?,
                    data => drop(self.lively.insert(data >> 1)),
                }
            }
            self.move_lively();
            self.resting = self.resting.filter(|until| Instant::now() < *until);
            let room = self.waiting.len() + self.joined.len() < MAX_CONNECTIONS;
            self.listen(room && self.resting.is_none())?;
        }
    }

    /// Watches the listeners, or leaves who dials them in their backlogs.
    fn listen(&mut self, listening: bool) -> io::Result<()> {
        if self.listening != listening {
            self.listening = listening;
            let flags = if listening { EventFlags::IN } else { EventFlags::empty() };
            for (listener, data) in self.listeners.iter().zip(FIRST_LISTENER..) {
                epoll::modify(&self.epoll, listener, EventData::new_u64(data), flags)?;
            }
        }
        Ok(())
    }

    /// Takes one connection; the next one makes its listener heard again.
    fn accept(&mut self, index: u64) -> io::Result<()> {
        let listener = usize::try_from(index).ok().and_then(|index| self.listeners.get(index));
        let Some(listener) = listener.filter(|_| self.listening) else { return Ok(()) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(listener, flags) {
            Ok(client) => self.announce(client),
            // No descriptors, or no memory: the listener would be heard at once again.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.resting = Some(Instant::now() + REST);
                return self.listen(false);
            }
            // The client is gone again.
            Err(_) => {}
        }
        if self.waiting.len() + self.joined.len() >= MAX_CONNECTIONS {
            self.listen(false)?;
        }
        Ok(())
    }

    /// Asks the shim for the guest's end.
    fn announce(&mut self, client: OwnedFd) {
        let number = self.next;
        self.next += 1;
        let address = getsockname(&client).ok().and_then(|name| SocketAddr::try_from(name).ok());
        // Its own address is what was dialled, for only the rule leads here.
        let told = address.filter(leads_in).and_then(|address| {
            let dial = ToShim::Dial(Dial { number, address });
            let message = serde_json::to_vec(&dial).ok()?;
            scm::send(&self.control, &message, &[]).ok()
        });
        match told {
            Some(()) => drop(self.waiting.insert(number, client)),
            // A shim that is that far behind is asked no more.
            None => reset(client),
        }
    }

    fn take_answers(&mut self) {
        self.bell.hush();
        while let Ok((number, stream)) = self.answers.try_recv() {
            let Some(client) = self.waiting.remove(&number) else { continue };
            let Some(stream) = stream else {
                reset(client);
                continue;
            };
            if self.join(number, &client, &stream).is_ok() {
                self.joined.insert(number, Relay::new(client, stream));
                self.lively.insert(number);
            } else {
                reset(client);
            }
        }
    }

    fn join(&self, number: u64, client: &OwnedFd, stream: &OwnedFd) -> io::Result<()> {
        ioctl_fionbio(stream, true)?;
        set_tcp_nodelay(client, true)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        for (end, bit) in [(client, 0), (stream, 1)] {
            epoll::add(&self.epoll, end.as_fd(), EventData::new_u64(number << 1 | bit), flags)?;
        }
        Ok(())
    }

    /// Moves the bytes of all connections that had news; those that could go on are looked at again.
    fn move_lively(&mut self) {
        for number in std::mem::take(&mut self.lively) {
            let Some(relay) = self.joined.get_mut(&number) else { continue };
            match relay.advance(&mut self.block) {
                State::Blocked => {}
                State::Moving => drop(self.lively.insert(number)),
                State::Over => drop(self.joined.remove(&number)),
                State::Reset => {
                    if let Some(relay) = self.joined.remove(&number) {
                        reset(relay.into_client());
                    }
                }
            }
        }
    }
}

/// Docker's resolver, when it has no rule in the namespace, would be asked for what the guest asks it.
fn leads_in(address: &SocketAddr) -> bool {
    address.ip().is_loopback() && *address != SocketAddr::V4(resolver::ADDRESS)
}

/// Closes a connection so that its client gets a reset; where that can't be set it gets an ordinary end.
fn reset(client: OwnedFd) {
    set_socket_linger(&client, Some(Duration::ZERO)).ok();
}
