//! The device as vhost-user sees it: features, configuration space, and the one thread that everything happens on.
//!
//! The thread belongs to the vhost-user crate and waits for the kicks of both queues, for the connections' Unix sockets
//! (the muxer's epoll, nested) and for `again`, by which a pass that has used up its budget puts itself behind whatever
//! else has happened. Any of these leads to the same thing: both queues are worked on until neither has anything left.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::{
    device::{self, BrokenQueue, Progress},
    muxer::{Announcer, Identity, Muxer},
};
use crate::vring;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = vring::Vring<Memory>;

/// Queues that the back end serves; the third one, for events, stays with the VMM.
const QUEUES: usize = 2;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;

/// Longest queue; QEMU's have 128 entries.
const MAX_QUEUE_SIZE: usize = 1024;

/// Event numbers behind those of the queues and of the crate's exit event.
const HOST_EVENT: u16 = 3;
const AGAIN_EVENT: u16 = 4;
const RETRY_EVENT: u16 = 5;

/// How long a host without memory is left alone.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// Passes over both queues before other events are looked at.
const ROUNDS: usize = 8;

/// Feature bits of virtio 1.3, section 6.
const RING_INDIRECT_DESC: u64 = 1 << 28;
const RING_EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// The vhost-user back end of the vsock device.
pub struct VsockBackend<A> {
    guest_cid: u64,
    state: Mutex<State<A>>,
    again: OwnedFd,
    retry: OwnedFd,
}

struct State<A> {
    muxer: Muxer<A>,
    memory: Option<Memory>,
    broken: [bool; QUEUES],
    /// The queues, once there was something in one of them.
    vrings: Vec<Vring>,
    /// Who waits for the last byte to be handed out.
    drained: Option<mpsc::Sender<()>>,
    /// The host is about to be asked for memory again.
    retrying: bool,
}

impl<A: Announcer + 'static> VsockBackend<A> {
    /// A device without a VMM yet.
    ///
    /// # Errors
    /// Those of epoll(7) and eventfd(2).
    pub fn new(identity: Identity, announcer: A) -> io::Result<Arc<Self>> {
        let guest_cid = identity.guest_cid;
        let muxer = Muxer::new(identity, announcer)?;
        Ok(Arc::new(Self {
            guest_cid,
            state: Mutex::new(State {
                muxer,
                memory: None,
                broken: [false; QUEUES],
                vrings: Vec::new(),
                drained: None,
                retrying: false,
            }),
            again: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            retry: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
        }))
    }

    /// Adds the device's own events to those that the daemon's thread waits for.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn register(self: &Arc<Self>, daemon: &VhostUserDaemon<Arc<Self>>) -> io::Result<()> {
        let handlers: Vec<Arc<VringEpollHandler<Arc<Self>>>> = daemon.get_epoll_handlers();
        let events = self.lock().muxer.events().as_fd().as_raw_fd();
        for handler in handlers {
            handler.register_listener(events, EventSet::IN, u64::from(HOST_EVENT))?;
            let again = self.again.as_raw_fd();
            handler.register_listener(again, EventSet::IN, u64::from(AGAIN_EVENT))?;
            let retry = self.retry.as_raw_fd();
            handler.register_listener(retry, EventSet::IN, u64::from(RETRY_EVENT))?;
        }
        Ok(())
    }

    /// Waits until the host has taken what the guest had sent, but no longer than `limit`. To be called when the guest has ended: what it
    /// sent last may still be in its queue.
    pub fn drain(&self, limit: Duration) {
        let (drained, waiter) = mpsc::channel();
        {
            let mut state = self.lock();
            let vrings = state.vrings.clone();
            // However long a queue the VMM has made; one that was taken over may go on filling it.
            let until = Instant::now() + limit;
            while state.pass(&vrings) && Instant::now() < until {}
            if !state.muxer.has_backlog() {
                return;
            }
            if let Err(error) = self.retry_later(&mut state) {
                tracing::warn!(%error, "set a timer");
            }
            state.drained = Some(drained);
        }
        if waiter.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("output of the guest is lost: nobody took it");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, vrings: &[Vring]) -> io::Result<()> {
        let mut state = self.lock();
        if state.vrings.is_empty() {
            state.vrings = vrings.to_vec();
        }
        let done = (0..ROUNDS).any(|_| !state.pass(vrings));
        self.retry_later(&mut state)?;
        if !done {
            rustix::io::write(&self.again, &1_u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Sees to it that a host that had no memory is asked again. A timer that runs is not put off: events may never cease.
    fn retry_later(&self, state: &mut State<A>) -> io::Result<()> {
        if state.muxer.is_starved() && !state.retrying {
            let once = Itimerspec { it_interval: Timespec::default(), it_value: RETRY };
            timerfd_settime(&self.retry, TimerfdTimerFlags::empty(), &once)?;
            state.retrying = true;
        }
        Ok(())
    }
}

impl<A: Announcer> State<A> {
    fn on_host_events(&mut self) -> io::Result<()> {
        self.muxer.on_host_events()?;
        self.tell_drained();
        Ok(())
    }

    fn tell_drained(&mut self) {
        if self.drained.is_some() && !self.muxer.has_backlog() {
            // Wakes the waiter: nothing is ever sent.
            self.drained = None;
        }
    }

    /// One pass over both queues; true when there is more to do right now.
    fn pass(&mut self, vrings: &[Vring]) -> bool {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return false;
        };
        let mut more = false;
        for index in [TRANSMIT_QUEUE, RECEIVE_QUEUE] {
            let Some(vring) = vrings.get(index) else { return false };
            let mut vring = vring.get_mut();
            if !vring.is_enabled() || !vring.get_queue().ready() {
                self.broken[index] = false;
                continue;
            }
            if self.broken[index] {
                continue;
            }
            let queue = vring.get_queue_mut();
            let pass = if index == TRANSMIT_QUEUE { device::transmit } else { device::receive };
            let progress = pass(&mut self.muxer, queue, &memory).unwrap_or_else(|cause| {
                self.broken[index] = true;
                report(index, &cause)
            });
            more |= progress.more;
            if progress.used && vring.needs_notification().unwrap_or(true) {
                // Fails only when the VMM's eventfd is gone, and the VMM with it.
                vring.signal_used_queue().unwrap_or_else(|cause| tracing::debug!(%cause, "signal"));
            }
            if self.is_waiting_for(index) && !self.broken[index] {
                more |= vring.enable_notification().unwrap_or(false);
            }
        }
        more
    }

    /// True when the next chain of this queue matters: otherwise its kick would only wake us for nothing.
    fn is_waiting_for(&self, index: usize) -> bool {
        if index == TRANSMIT_QUEUE {
            !self.muxer.is_congested()
        } else {
            self.muxer.wants_guest_buffer()
        }
    }
}

fn report(index: usize, cause: &BrokenQueue) -> Progress {
    tracing::warn!(queue = index, cause = cause as &dyn std::error::Error, "queue ignored");
    Progress::default()
}

/// Only this thread reads it; should it be empty, nothing is lost.
fn take(event: &OwnedFd) {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count).unwrap_or_default();
}

impl<A: Announcer + 'static> VhostUserBackend for VsockBackend<A> {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        VERSION_1
            | RING_INDIRECT_DESC
            | RING_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let space = self.guest_cid.to_le_bytes();
        let from = (offset as usize).min(space.len());
        let to = from.saturating_add(size as usize).min(space.len());
        space[from..to].to_vec()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.lock().memory = Some(memory);
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _evset: EventSet,
        vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        match device_event {
            HOST_EVENT => self.lock().on_host_events()?,
            AGAIN_EVENT => take(&self.again),
            RETRY_EVENT => {
                take(&self.retry);
                let mut state = self.lock();
                state.retrying = false;
                state.muxer.retry();
                state.tell_drained();
            }
            _ => {}
        }
        self.run(vrings)
    }
}
