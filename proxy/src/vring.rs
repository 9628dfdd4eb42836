//! A queue that kicks itself when it starts.
//!
//! While a VM is paused its queues are stopped. A kick that was taken off its eventfd just before, but came to a queue that
//! had stopped meanwhile, would be lost, and with event indices the guest never sends a second one for the same
//! entries: its queue would stand still for good. So each start begins with a look at the queue.

use std::{fs::File, io};

use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::GuestAddressSpace;

/// The vhost-user crate's queue, but for the kick.
#[derive(Clone)]
pub struct Vring<M: GuestAddressSpace>(VringMutex<M>);

impl<M: GuestAddressSpace> Vring<M> {
    /// The crate's own, for whom takes no other.
    pub fn bare(&self) -> VringMutex<M> {
        self.0.clone()
    }
}

impl<'a, M: 'a + GuestAddressSpace> VringStateGuard<'a, M> for Vring<M> {
    type G = <VringMutex<M> as VringStateGuard<'a, M>>::G;
}

impl<'a, M: 'a + GuestAddressSpace> VringStateMutGuard<'a, M> for Vring<M> {
    type G = <VringMutex<M> as VringStateMutGuard<'a, M>>::G;
}

impl<M: 'static + GuestAddressSpace> VringT<M> for Vring<M> {
    fn new(memory: M, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, M>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.0.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        if let Some(kick) = &file {
            // A descriptor that takes no kick gives none either; what it is matters to the VMM alone.
            rustix::io::write(kick, &1_u64.to_ne_bytes()).map(drop).unwrap_or_default();
        }
        self.0.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            // Another's read came first; an error would end the thread, and the device with it.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(true),
            kick => kick,
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}
