//! All connections of one guest: who is who, whose turn it is, and how many there may be.
//!
//! Everything a guest can make grow has a bound: connections (with those that only drain), buffer bytes over all of
//! them, and resets that wait for a guest buffer. At the last bound the guest's queue is left alone until it has taken
//! some ([`Muxer::is_congested`]), so that no reset is lost and none piles up.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::{
    Timespec,
    epoll::{CreateFlags, Event, EventData, EventFlags, add, create, wait},
};
use vm_memory::VolatileSlice;

use super::{
    connection::{Connection, Key, Verdict},
    header::{HOST_CID, Header, Op, TYPE_STREAM},
};

/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 1024;

/// Most resets that wait for a guest buffer.
pub const MAX_RESETS: usize = 256;

/// What a guest may have under way in one connection.
pub const BUFFER: u32 = 256 * 1024;

/// The same when the connections that there are have used up [`BUFFER_BUDGET`].
pub const SMALL_BUFFER: u32 = 16 * 1024;

/// Sum of the buffers that are granted in full; a guest that opens connections by the thousand gets small ones.
pub const BUFFER_BUDGET: usize = 32 * 1024 * 1024;

/// Gives the host its end of a new connection.
pub trait Announcer: Send {
    /// Passes on `socket`; never blocks.
    ///
    /// # Errors
    /// `WouldBlock` when the receiver is behind: the same is tried again once [`socket`](Self::socket) is writable.
    fn announce(&mut self, key: Key, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// What becomes writable.
    fn socket(&self) -> BorrowedFd<'_>;
}

/// Whom a muxer serves.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The guest's context id.
    pub guest_cid: u64,
    /// Host ports that it may dial.
    pub ports: Vec<u32>,
}

/// A new connection that the host was not told of yet.
struct Offer {
    index: usize,
    socket: OwnedFd,
}

#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    queued: bool,
    buffer: u32,
}

/// The table of connections; see the module.
pub struct Muxer<A> {
    identity: Identity,
    announcer: A,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    /// Connections with something for the guest, in turn; an index is in here at most once.
    turns: VecDeque<usize>,
    resets: VecDeque<Header>,
    offers: VecDeque<Offer>,
    granted: usize,
    /// The host had no memory for what some connection was to pass on.
    starved: bool,
}

/// Token of the announcer's socket; slots are counted from 0 and never come near it.
const ANNOUNCER: u64 = u64::MAX;

impl<A: Announcer> Muxer<A> {
    /// A muxer without connections.
    ///
    /// # Errors
    /// Those of epoll_create(2) and epoll_ctl(2).
    pub fn new(identity: Identity, announcer: A) -> io::Result<Self> {
        let epoll = create(CreateFlags::CLOEXEC)?;
        add(
            &epoll,
            announcer.socket(),
            EventData::new_u64(ANNOUNCER),
            EventFlags::OUT | EventFlags::ET,
        )?;
        Ok(Self {
            identity,
            announcer,
            epoll,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            offers: VecDeque::new(),
            granted: 0,
            starved: false,
        })
    }

    /// Readable when [`on_host_events`](Self::on_host_events) has something to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Connections there are, with those that only drain.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of buffers granted to the guest.
    pub fn granted(&self) -> usize {
        self.granted
    }

    /// True when the guest has to take packets before it may send more.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// True when there is something to put into a guest buffer.
    pub fn wants_guest_buffer(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// True when bytes of the guest wait for the host side of any connection.
    pub fn has_backlog(&self) -> bool {
        let mut connections = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        connections.any(Connection::has_backlog)
    }

    /// True when something is to be [tried again](Self::retry) after a while.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Tries again what the host had no memory for.
    pub fn retry(&mut self) {
        self.starved = false;
        for index in 0..self.slots.len() {
            if let Some(connection) = self.connection(index).filter(|each| each.is_starved()) {
                let verdict = connection.retry();
                self.apply(index, verdict);
            }
        }
    }

    /// Takes a packet of the guest; `payload` is as long as its header says.
    pub fn on_packet(&mut self, header: &Header, payload: &[VolatileSlice<'_>]) {
        if header.src_cid != self.identity.guest_cid {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let key = Key { port: header.dst_port, guest_port: header.src_port };
        match self.by_key.get(&key).copied() {
            Some(index) => {
                let verdict = self.slots[index]
                    .connection
                    .as_mut()
                    .map_or(Verdict::Keep, |connection| connection.on_packet(header, payload));
                self.apply(index, verdict);
            }
            None if Op::parse(header.op) == Some(Op::Request) => self.on_request(header),
            None => self.refuse(header),
        }
    }

    /// Takes a packet whose payload is not what its header says.
    pub fn on_malformed(&mut self, header: &Header) {
        let key = Key { port: header.dst_port, guest_port: header.src_port };
        match self.by_key.get(&key).copied() {
            Some(index) if header.src_cid == self.identity.guest_cid => {
                self.apply(index, Verdict::Reset);
            }
            _ => self.refuse(header),
        }
    }

    /// Takes what has happened on the Unix sockets, without blocking.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn on_host_events(&mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(64);
        match wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&Timespec::default()),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        for event in events {
            let token = event.data.u64();
            if token == ANNOUNCER {
                self.announce();
                continue;
            }
            let Ok(index) = usize::try_from(token) else { continue };
            let connection = self.slots.get_mut(index).and_then(|slot| slot.connection.as_mut());
            if let Some(connection) = connection {
                let verdict = connection.on_event(event.flags);
                self.apply(index, verdict);
            }
        }
        Ok(())
    }

    /// The next packet for the guest that has no payload and belongs to no connection any more.
    pub fn reset_packet(&mut self) -> Option<Header> {
        self.resets.pop_front()
    }

    /// Puts a reset back that found no guest buffer.
    pub fn return_reset(&mut self, header: Header) {
        self.resets.push_front(header);
    }

    /// Whose turn it is; `None` when nobody has anything for the guest. To be followed by
    /// [`end_turn`](Self::end_turn) with the same index.
    pub fn take_turn(&mut self) -> Option<usize> {
        while let Some(index) = self.turns.pop_front() {
            self.slots[index].queued = false;
            if self.slots[index].connection.as_ref().is_some_and(Connection::wants_guest_buffer) {
                return Some(index);
            }
        }
        None
    }

    /// The connection in a slot.
    pub fn connection(&mut self, index: usize) -> Option<&mut Connection> {
        self.slots.get_mut(index)?.connection.as_mut()
    }

    /// Puts a connection behind all others that wait, if it still has something for the guest.
    pub fn end_turn(&mut self, index: usize) {
        let verdict = self.connection(index).map_or(Verdict::Keep, Connection::settle);
        self.apply(index, verdict);
    }

    fn on_request(&mut self, request: &Header) {
        if !self.identity.ports.contains(&request.dst_port) || self.len() >= MAX_CONNECTIONS {
            return self.refuse(request);
        }
        if let Err(cause) = self.offer(request) {
            tracing::debug!(%cause, port = request.dst_port, "cannot make a connection");
            self.refuse(request);
        }
    }

    fn offer(&mut self, request: &Header) -> io::Result<()> {
        let (near, far) = kata_sys::scm::stream_pair()?;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if let Err(cause) = add(&self.epoll, &near, EventData::new_u64(index as u64), interest) {
            self.free.push(index);
            return Err(cause.into());
        }
        let buffer =
            if self.granted + BUFFER as usize <= BUFFER_BUDGET { BUFFER } else { SMALL_BUFFER };
        self.granted += buffer as usize;
        let connection = Connection::offered(self.identity.guest_cid, request, near, buffer);
        self.by_key.insert(connection.key(), index);
        self.slots[index] = Slot { connection: Some(connection), queued: false, buffer };
        self.offers.push_back(Offer { index, socket: far });
        self.announce();
        Ok(())
    }

    /// Hands out what waits to be handed out, as far as the receiver takes it.
    fn announce(&mut self) {
        while let Some(Offer { index, socket }) = self.offers.pop_front() {
            let Some(connection) = self.slots[index].connection.as_mut() else { continue };
            match self.announcer.announce(connection.key(), socket.as_fd()) {
                Ok(()) => {
                    connection.announced();
                    self.end_turn(index);
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.offers.push_front(Offer { index, socket });
                    return;
                }
                Err(cause) => {
                    tracing::debug!(%cause, "cannot announce a connection");
                    self.apply(index, Verdict::Reset);
                }
            }
        }
    }

    fn apply(&mut self, index: usize, verdict: Verdict) {
        self.starved |= self.slots[index].connection.as_ref().is_some_and(Connection::is_starved);
        match verdict {
            Verdict::Keep => self.queue(index),
            Verdict::Remove => self.remove(index),
            Verdict::Reset => {
                if let Some(connection) = &self.slots[index].connection {
                    let key = connection.key();
                    self.resets.push_back(Header {
                        src_cid: HOST_CID,
                        dst_cid: self.identity.guest_cid,
                        src_port: key.port,
                        dst_port: key.guest_port,
                        kind: TYPE_STREAM,
                        op: Op::Reset as u16,
                        ..Header::default()
                    });
                }
                self.remove(index);
            }
            Verdict::Detach => {
                let Some(connection) = self.slots[index].connection.as_mut() else { return };
                let key = connection.key();
                let verdict = connection.detach();
                self.starved |= connection.is_starved();
                self.forget(key, index);
                if verdict == Verdict::Remove {
                    self.remove(index);
                }
            }
        }
    }

    fn queue(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let wants = slot.connection.as_ref().is_some_and(Connection::wants_guest_buffer);
        if wants && !slot.queued {
            slot.queued = true;
            self.turns.push_back(index);
        }
    }

    /// Frees the ports of a connection for the next one.
    fn forget(&mut self, key: Key, index: usize) {
        if self.by_key.get(&key) == Some(&index) {
            self.by_key.remove(&key);
        }
    }

    fn remove(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(connection) = slot.connection.take() else { return };
        self.granted -= slot.buffer as usize;
        slot.buffer = 0;
        // An index that still has a turn must not get a second one when the slot is used again.
        if std::mem::take(&mut slot.queued) {
            self.turns.retain(|turn| *turn != index);
        }
        self.offers.retain(|offer| offer.index != index);
        self.forget(connection.key(), index);
        self.free.push(index);
    }

    fn refuse(&mut self, header: &Header) {
        // A reset that answers a reset could go on for ever.
        if Op::parse(header.op) != Some(Op::Reset) {
            self.resets.push_back(header.reset());
        }
    }
}
