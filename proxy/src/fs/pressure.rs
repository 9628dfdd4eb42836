//! Notices that the guest holds many of the proxy's descriptors, one for each inode that it knows.
//!
//! The kernel hands out the lowest free descriptor, so descriptor number *n* is open when about *n* are: after each batch
//! of requests one fcntl(2) on the number at 75 % of the limit tells. Which of the lower ones are still open is
//! sampled afterwards, to notice when the guest has let go: only then is it told again.
//!
//! A guest that is told needs a moment, and goes on opening meanwhile. At 80 % its requests are *held* in their queue, while
//! what gives inodes back (FORGET) comes through the other queue. They go on when enough has come back, or after
//! [`PATIENCE`]: then the guest cannot or will not let go, gets ENFILE in time, and is not held again before it has. The rest
//! ([`RESERVED`]) is never the guest's, whichever share it asks by: streams need descriptors, and so do requests under way.
//!
//! A kick begins passes over its queue until nothing waits there. virtiofsd would go on by itself, for ever where an impossible
//! index in the ring says that something waits that can't be taken; so it is told to make one pass a time, and that a pass took nothing
//! is looked at here.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    stdio::stderr,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use vhost::vhost_user::{
    Backend,
    message::{VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures},
};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use virtiofsd::{
    filesystem::{FileSystem, SerializableFileSystem},
    vhost_user::VhostUserFsBackend,
};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventNotifier},
};

type Bitmap = vhost_user_backend::bitmap::BitmapMmapRegion;
type Memory = GuestMemoryAtomic<vm_memory::GuestMemoryMmap<Bitmap>>;
type Vring = crate::vring::Vring<Memory>;

/// Descriptors that are looked at to see whether the guest has let go.
const SAMPLES: u64 = 32;

/// One in so many descriptors is not the guest's to hold.
const RESERVED: u64 = 8;

/// Passes over a queue in which something waits that take nothing: the first may have come before it.
const IDLE_PASSES: usize = 2;

/// How long requests are held: dropping 15,000 names took a guest 0.2 s under TCG.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The queue of everything but FORGET, and the timer behind the queues and the crate's exit event.
const REQUEST_QUEUE: u16 = 1;
const TIMER_EVENT: u16 = 3;

/// The gauge, one for all shares: they draw on the same descriptors.
#[derive(Clone)]
pub struct Pressure {
    limit: u64,
    reported: Arc<AtomicBool>,
    /// Holding requests has not helped since the report.
    given_up: Arc<AtomicBool>,
    report: Arc<dyn Fn(u64, u64) -> bool + Send + Sync>,
}

impl Pressure {
    /// Calls `report` with the open descriptors and their limit when 75 % of `limit` are in use, until it says that this was
    /// heard, and again after that has fallen below about half and risen.
    pub fn new(limit: u64, report: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        Self { limit, reported: Arc::default(), given_up: Arc::default(), report: Arc::new(report) }
    }

    /// Looks at the gauge.
    pub fn check(&self) {
        let high = self.limit / 4 * 3;
        if self.reported.load(Ordering::Relaxed) {
            if self.sample(high) < SAMPLES / 2 && self.reported.swap(false, Ordering::Relaxed) {
                self.given_up.store(false, Ordering::Relaxed);
                // What thousands of inodes have taken is worth having back.
                kata_sys::heap::trim();
            }
        } else if is_open(high)
            // The number alone may be a file that stays open for long.
            && self.is_dense(high)
            && !self.reported.swap(true, Ordering::Relaxed)
            && !(self.report)(high, self.limit)
        {
            self.reported.store(false, Ordering::Relaxed);
        }
    }

    /// True when the guest may hold one thing more: the next descriptor is none of the last.
    pub fn has_room(&self) -> bool {
        let most = self.guests();
        // Which of them is the next is only asked for when one so high is open at all.
        !is_open(most) || next().is_some_and(|next| next < most)
    }

    /// Descriptors that the guest may hold.
    pub fn guests(&self) -> u64 {
        self.limit - self.limit / RESERVED
    }

    /// True when requests should wait for the guest to let go.
    fn must_hold(&self) -> bool {
        self.reported.load(Ordering::Relaxed)
            && !self.given_up.load(Ordering::Relaxed)
            && is_open(self.limit / 5 * 4)
            && self.is_dense(self.limit / 5 * 4)
    }

    fn is_dense(&self, high: u64) -> bool {
        self.sample(high) > SAMPLES / 8 * 7
    }

    /// How many of [`SAMPLES`] descriptors below `high` are open.
    fn sample(&self, high: u64) -> u64 {
        (1..=SAMPLES).map(|sample| u64::from(is_open(high * sample / SAMPLES))).sum()
    }
}

/// The number of the next descriptor: the lowest that is free.
fn next() -> Option<u64> {
    let next = fcntl_dupfd_cloexec(stderr(), 0).ok()?;
    u64::try_from(next.as_raw_fd()).ok()
}

fn is_open(descriptor: u64) -> bool {
    RawFd::try_from(descriptor).is_ok_and(kata_sys::descriptor::is_open)
}

/// A virtio-fs device that looks at the gauge after each batch of requests; all else is virtiofsd's.
pub struct PressureBackend<F: FileSystem + SerializableFileSystem + Send + Sync + 'static> {
    device: VhostUserFsBackend<F>,
    pressure: Pressure,
    held: AtomicBool,
    patience: OwnedFd,
    event_indices: AtomicBool,
    /// A queue has contradicted itself, which was told.
    contradicted: AtomicBool,
}

impl<F: FileSystem + SerializableFileSystem + Send + Sync + 'static> PressureBackend<F> {
    /// Puts `pressure` behind `device`.
    ///
    /// # Errors
    /// Those of timerfd_create(2).
    pub fn new(device: VhostUserFsBackend<F>, pressure: Pressure) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let patience = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            device,
            pressure,
            held: AtomicBool::new(false),
            patience,
            event_indices: AtomicBool::new(false),
            contradicted: AtomicBool::new(false),
        })
    }

    /// Adds the device's timer to what the daemon's thread waits for.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn register(self: &Arc<Self>, daemon: &VhostUserDaemon<Arc<Self>>) -> io::Result<()> {
        let timer = self.patience.as_raw_fd();
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(timer, EventSet::IN, u64::from(TIMER_EVENT))?;
        }
        Ok(())
    }

    /// Works on a queue until nothing waits in it. What is wrong with it is the guest's affair: it is looked at with the next kick.
    fn work(&self, queue: u16, vrings: &[Vring], thread_id: usize) {
        let Some(vring) = vrings.get(usize::from(queue)) else { return };
        let bare: Vec<VringMutex<Memory>> = vrings.iter().map(Vring::bare).collect();
        let mut idle = 0;
        while idle < IDLE_PASSES {
            let before = vring.queue_next_avail();
            let passed = self.device.handle_event(queue, EventSet::IN, &bare, thread_id);
            idle = if vring.queue_next_avail() == before { idle + 1 } else { 0 };
            if !self.is_waiting(vring) {
                return;
            }
            if let Err(cause) = passed
                && !self.contradicted.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(queue, %cause, "queue of a share that contradicts itself");
            }
        }
    }

    /// True when something waits that will have no kick of its own. One that is stopped kicks when it starts.
    fn is_waiting(&self, vring: &Vring) -> bool {
        let mut state = vring.get_mut();
        self.event_indices.load(Ordering::Relaxed)
            && state.get_queue().ready()
            && state.enable_notification().unwrap_or(false)
    }

    fn hold(&self) -> io::Result<()> {
        self.held.store(true, Ordering::Relaxed);
        self.wait(PATIENCE)
    }

    /// Starts the timer anew; no time at all stops it.
    fn wait(&self, time: Timespec) -> io::Result<()> {
        let time = Itimerspec { it_interval: Timespec::default(), it_value: time };
        timerfd_settime(&self.patience, TimerfdTimerFlags::empty(), &time)?;
        Ok(())
    }
}

impl<F: FileSystem + SerializableFileSystem + Send + Sync + 'static> VhostUserBackend
    for PressureBackend<F>
{
    type Bitmap = Bitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.device.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.device.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn acked_features(&self, features: u64) {
        self.device.acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.device.protocol_features()
    }

    fn reset_device(&self) {
        self.device.reset_device();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_indices.store(enabled, Ordering::Relaxed);
        // One pass a time.
        self.device.set_event_idx(false);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.get_config(offset, size)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.device.update_memory(memory)
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        self.device.set_backend_req_fd(backend);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        self.device.queues_per_thread()
    }

    fn exit_event(&self, thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.device.exit_event(thread_index)
    }

    fn handle_event(
        &self,
        device_event: u16,
        evset: EventSet,
        vrings: &[Self::Vring],
        thread_id: usize,
    ) -> io::Result<()> {
        if device_event == REQUEST_QUEUE && self.pressure.must_hold() {
            return self.hold();
        }
        if device_event == TIMER_EVENT {
            self.pressure.given_up.store(true, Ordering::Relaxed);
        } else if evset == EventSet::IN {
            self.work(device_event, vrings, thread_id);
        } else {
            // No kick: an error ends the thread, and with it the device.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.pressure.check();
        if self.held.load(Ordering::Relaxed) && !self.pressure.must_hold() {
            self.held.store(false, Ordering::Relaxed);
            // Stopped, it is not readable any more either.
            self.wait(Timespec::default())?;
            self.work(REQUEST_QUEUE, vrings, thread_id);
            self.pressure.check();
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        self.device.set_device_state_fd(direction, phase, file)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.device.check_device_state()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use vhost_user_backend::{VhostUserBackend, VringT, bitmap::BitmapMmapRegion};
    use virtiofsd::{
        passthrough::{Config, PassthroughFs},
        vhost_user::VhostUserFsBackendBuilder,
    };
    use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
    use vmm_sys_util::epoll::EventSet;

    use super::{Pressure, PressureBackend, REQUEST_QUEUE, Vring};

    const SIZE: u16 = 16;
    const AVAILABLE: u64 = 0x1000;

    #[test]
    fn a_queue_that_contradicts_itself_is_let_go() {
        let tree = tempfile::tempdir().unwrap();
        let root_dir = tree.path().to_str().unwrap().to_owned();
        let fs = PassthroughFs::new(Config { root_dir, ..Config::default() }).unwrap();
        let device = VhostUserFsBackendBuilder::default().build(fs).unwrap();
        let backend = PressureBackend::new(device, Pressure::new(1 << 20, |_, _| true)).unwrap();
        let memory: GuestMemoryMmap<BitmapMmapRegion> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        // The index is the second word of the ring.
        memory.write_obj(SIZE + 1, GuestAddress(AVAILABLE + 2)).unwrap();
        let memory = GuestMemoryAtomic::new(memory);
        backend.update_memory(memory.clone()).unwrap();
        backend.set_event_idx(true);
        let vrings = [0, 1].map(|_| Vring::new(memory.clone(), SIZE).unwrap());
        for vring in &vrings {
            vring.set_queue_info(0x100, AVAILABLE, 0x2000).unwrap();
            vring.set_queue_event_idx(true);
            vring.set_queue_ready(true);
            vring.set_enabled(true);
        }
        let (done, dones) = mpsc::channel();
        std::thread::spawn(move || {
            for queue in [0, REQUEST_QUEUE] {
                backend.handle_event(queue, EventSet::IN, &vrings, 0).unwrap();
                done.send(vrings[usize::from(queue)].queue_next_avail()).unwrap();
            }
        });
        for _ in 0..2 {
            assert_eq!(dones.recv_timeout(Duration::from_secs(20)), Ok(0));
        }
    }
}
