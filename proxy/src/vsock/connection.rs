//! One stream between a guest's socket and a Unix socket of the host.
//!
//! ```text
//!              announced             both halves given up by the guest, or its reset
//!  Offered ───────────────► Open ───────────────────────────────────────────────────► Draining ──► gone
//!     │                      │ credit broken, second request, host side out of order        ▲ backlog empty,
//!     └──── reset ──► gone ◄─┘                                                              │ or host has closed
//! ```
//!
//! *Guest to host*: payload goes from guest memory straight into the Unix socket. What the socket does not take waits
//! in a [`Backlog`] of the size that the guest was granted, so a slow reader stalls its own connection and no other.
//! *Host to guest*: nothing is held here at all; bytes are read when the guest has both credit and a buffer.
//!
//! A half that the guest gives up becomes a shutdown(2) of the Unix socket, after the backlog is flushed; the end of the
//! Unix socket's stream becomes a shutdown packet, after its last byte. What a guest has sent is delivered even when
//! the guest resets or closes right after (Draining): it was acknowledged.
//!
//! Readiness of the Unix socket comes edge-triggered: `readable` and `writable` mean "as far as is known" and fall only
//! on `EAGAIN` (or a short read, which on a stream says the same). A host without memory (`ENOBUFS`) makes them fall too, but tells of no
//! edge when it has some again: such a connection is *starved*, and tried again after a while.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::guest_memory;
use rustix::{
    event::epoll::EventFlags,
    net::{Shutdown, shutdown},
};
use vm_memory::VolatileSlice;

use super::{
    backlog::Backlog,
    credit::{Inbound, Outbound},
    header::{HOST_CID, Halves, Header, Op, TYPE_STREAM},
};

/// Guest buffers for a connection that says little: a control packet and a message.
const MIN_BURST: usize = 2;

/// Guest buffers for one that fills them: 32 of Linux's 4 KiB ones are half of its credit.
const MAX_BURST: usize = 32;

/// What makes a connection unique: the host's and the guest's context ids are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port of the host that the guest has dialled.
    pub port: u32,
    /// The guest's own port.
    pub guest_port: u32,
}

/// What becomes of a connection after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// The guest is to be told that it is over; nothing is left to deliver.
    Reset,
    /// It is over for the guest, which knows; the backlog may have to be delivered.
    Detach,
    /// It is over for everybody.
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Offered,
    Open,
    Draining,
}

/// One connection; see the module for its states.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    guest_cid: u64,
    stage: Stage,
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// The peer has closed or shut down its writing half; a short read is no sign of emptiness then.
    ending: bool,
    backlog: Backlog,
    inbound: Inbound,
    outbound: Outbound,
    /// What the guest has given up.
    guest_ended: Halves,
    /// What of it the Unix socket was told.
    passed_on: Halves,
    /// What the host side has given up, in the host's words: `receive` when it will not read, `send` at its end of file.
    host_ended: Halves,
    /// What of it the guest was told.
    told: Halves,
    owes_response: bool,
    owes_credit: bool,
    asked_credit: bool,
    burst: usize,
    starved: bool,
}

impl Connection {
    /// A connection that the guest has requested and nobody knows of yet.
    pub fn offered(guest_cid: u64, request: &Header, socket: OwnedFd, buffer: u32) -> Self {
        let mut outbound = Outbound::default();
        outbound.learn(request.buf_alloc, request.fwd_cnt);
        Self {
            key: Key { port: request.dst_port, guest_port: request.src_port },
            guest_cid,
            stage: Stage::Offered,
            socket,
            readable: false,
            writable: true,
            ending: false,
            backlog: Backlog::new(buffer as usize),
            inbound: Inbound::new(buffer),
            outbound,
            guest_ended: Halves::default(),
            passed_on: Halves::default(),
            host_ended: Halves::default(),
            told: Halves::default(),
            owes_response: false,
            owes_credit: false,
            asked_credit: false,
            burst: MIN_BURST,
            starved: false,
        }
    }

    /// Its ports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Our end of the socket pair.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// True when bytes of the guest wait for the host side.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// True when the host had no memory for what it was to take or give.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Tries again what the host had no memory for.
    pub fn retry(&mut self) -> Verdict {
        (self.starved, self.readable, self.writable) = (false, true, true);
        self.settle()
    }

    /// The host side has been given its end.
    pub fn announced(&mut self) {
        self.stage = Stage::Open;
        self.owes_response = true;
    }

    /// The guest is done with it, but bytes may wait to be delivered.
    pub fn detach(&mut self) -> Verdict {
        self.stage = Stage::Draining;
        self.guest_ended = Halves { receive: true, send: true };
        self.settle()
    }

    /// Takes a packet of the guest; `payload` is as long as its header says.
    pub fn on_packet(&mut self, header: &Header, payload: &[VolatileSlice<'_>]) -> Verdict {
        self.outbound.learn(header.buf_alloc, header.fwd_cnt);
        if self.outbound.available() > 0 {
            self.asked_credit = false;
        }
        match (Op::parse(header.op), self.stage) {
            (Some(Op::Reset), _) => return Verdict::Detach,
            (Some(Op::Data), Stage::Open) if !self.guest_ended.send => {
                return self.on_data(header.len as usize, payload);
            }
            (Some(Op::Shutdown), Stage::Open | Stage::Offered) => {
                self.guest_ended = self.guest_ended.or(Halves::from_flags(header.flags));
            }
            (Some(Op::CreditUpdate), Stage::Open) => {}
            (Some(Op::CreditRequest), Stage::Open) => self.owes_credit = true,
            _ => return Verdict::Reset,
        }
        self.settle()
    }

    /// Takes what epoll says of the Unix socket.
    pub fn on_event(&mut self, events: EventFlags) -> Verdict {
        self.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);
        self.ending |= events.intersects(EventFlags::RDHUP | EventFlags::HUP);
        self.writable |= events.contains(EventFlags::OUT);
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.stop_delivery();
        }
        self.settle()
    }

    /// True when there is something to put into a guest's buffer.
    pub fn wants_guest_buffer(&self) -> bool {
        self.has_control_packet() || self.may_read()
    }

    /// The next packet without payload that the guest is owed.
    pub fn control_packet(&mut self) -> Option<Header> {
        if self.stage != Stage::Open {
            return None;
        }
        if self.owes_response {
            self.owes_response = false;
            return Some(self.packet(Op::Response));
        }
        if self.owes_credit || self.is_update_due() {
            self.owes_credit = false;
            return Some(self.packet(Op::CreditUpdate));
        }
        if self.host_ended != self.told {
            self.told = self.host_ended;
            return Some(Header { flags: self.told.flags(), ..self.packet(Op::Shutdown) });
        }
        if self.must_ask_credit() {
            self.asked_credit = true;
            return Some(self.packet(Op::CreditRequest));
        }
        None
    }

    /// Bytes that may be read for the guest now; 0 when there is nothing to read or no credit for it.
    pub fn read_limit(&self) -> usize {
        if self.may_read() { self.credit() as usize } else { 0 }
    }

    /// Guest buffers that are worth offering to it at once: few until it has filled some.
    pub fn burst(&self) -> usize {
        self.burst
    }

    /// Reads from the Unix socket into `slices`, whose sum is within [`read_limit`](Self::read_limit); returns the
    /// bytes read, 0 when there are none now or ever.
    pub fn read(&mut self, slices: &[VolatileSlice<'_>]) -> usize {
        let room: usize =
            slices.iter().take(guest_memory::MAX_SLICES).map(VolatileSlice::len).sum();
        match guest_memory::receive(&self.socket, slices) {
            Ok(0) => self.on_host_end(),
            Ok(got) => {
                self.readable = got == room || self.ending;
                self.burst = if got == room { MAX_BURST } else { MIN_BURST };
                self.outbound.send(got);
                return got;
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) if is_scarcity(&cause) => (self.starved, self.readable) = (true, false),
            // The peer closed with bytes of ours unread.
            Err(_) => self.on_host_end(),
        }
        0
    }

    /// The header of a data packet with `len` bytes of payload.
    pub fn data_packet(&mut self, len: u32) -> Header {
        Header { len, ..self.packet(Op::Data) }
    }

    /// Moves on after a step that went without a verdict.
    pub fn settle(&mut self) -> Verdict {
        self.flush();
        // Together, if it is both: whoever sees the end of file of a guest that broke off can tell it from a half-close.
        self.pass_on(Halves {
            receive: self.guest_ended.receive,
            send: self.guest_ended.send && self.backlog.is_empty(),
        });
        match self.stage {
            Stage::Draining if self.backlog.is_empty() => Verdict::Remove,
            Stage::Open if self.backlog.is_empty() && self.guest_ended.both() => Verdict::Reset,
            Stage::Draining | Stage::Open | Stage::Offered => Verdict::Keep,
        }
    }

    fn on_data(&mut self, len: usize, payload: &[VolatileSlice<'_>]) -> Verdict {
        if !self.inbound.receive(len) {
            tracing::debug!(?self.key, len, "guest has sent more than it was granted");
            return Verdict::Reset;
        }
        self.flush();
        let sent = self.deliver(payload, len);
        self.inbound.forward(sent);
        if sent < len {
            self.backlog.append(payload, sent);
        }
        self.settle()
    }

    /// Hands `payload` to the Unix socket as far as that is possible now; what a deaf host side misses is delivered too.
    fn deliver(&mut self, payload: &[VolatileSlice<'_>], len: usize) -> usize {
        if !self.host_ended.receive && self.backlog.is_empty() && self.writable {
            match guest_memory::send(&self.socket, payload) {
                Ok(sent) => return sent,
                Err(cause) => self.on_refusal(&cause),
            }
        }
        if self.host_ended.receive { len } else { 0 }
    }

    fn flush(&mut self) {
        if self.backlog.is_empty() || !self.writable {
            return;
        }
        let (flushed, outcome) = self.backlog.flush(&self.socket);
        self.inbound.forward(flushed);
        if let Err(cause) = outcome {
            self.on_refusal(&cause);
        }
    }

    /// The Unix socket has not taken what it was given.
    fn on_refusal(&mut self, cause: &io::Error) {
        match cause.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            io::ErrorKind::Interrupted => {}
            _ if is_scarcity(cause) => (self.starved, self.writable) = (true, false),
            _ => self.stop_delivery(),
        }
    }

    /// The host side will never read again: what waits is dropped, and the guest keeps its credit until it has heard.
    fn stop_delivery(&mut self) {
        self.host_ended.receive = true;
        let dropped = self.backlog.discard();
        self.inbound.forward(dropped);
    }

    fn on_host_end(&mut self) {
        self.readable = false;
        self.host_ended.send = true;
    }

    /// Tells the Unix socket what the guest has given up, once.
    fn pass_on(&mut self, halves: Halves) {
        let now = self.passed_on.or(halves);
        if now == self.passed_on {
            return;
        }
        self.passed_on = now;
        let how = match halves {
            Halves { send: true, receive: true } => Shutdown::Both,
            Halves { send: true, .. } => Shutdown::Write,
            Halves { .. } => Shutdown::Read,
        };
        // Fails only with ENOTCONN, when the peer is gone anyway.
        shutdown(&self.socket, how).unwrap_or_else(|cause| tracing::trace!(%cause, "shutdown"));
    }

    fn has_control_packet(&self) -> bool {
        self.stage == Stage::Open
            && (self.owes_response
                || self.owes_credit
                || self.is_update_due()
                || self.host_ended != self.told
                || self.must_ask_credit())
    }

    fn is_update_due(&self) -> bool {
        !self.guest_ended.send && self.inbound.is_update_due()
    }

    /// Once a stall: a guest tells by itself, but one that has forgotten to would never be served again.
    fn must_ask_credit(&self) -> bool {
        self.readable && self.credit() == 0 && !self.asked_credit && !self.is_deaf_guest()
    }

    fn may_read(&self) -> bool {
        self.stage == Stage::Open && self.readable && !self.is_deaf_guest() && self.credit() > 0
    }

    fn is_deaf_guest(&self) -> bool {
        self.guest_ended.receive || self.host_ended.send
    }

    fn credit(&self) -> u32 {
        self.outbound.available()
    }

    fn packet(&mut self, op: Op) -> Header {
        let (buf_alloc, fwd_cnt) = self.inbound.tell();
        self.owes_credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.port,
            dst_port: self.key.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc,
            fwd_cnt,
        }
    }
}

/// No end, but the host's want of memory.
fn is_scarcity(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}
