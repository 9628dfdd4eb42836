//! Flow control of one connection (virtio 1.3, 5.10.6.3): each side tells how much it can hold and how much it has
//! passed on; the other side never has more than the difference under way. All counters wrap.

use std::num::Wrapping;

/// What the guest may still send to us.
#[derive(Debug)]
pub struct Inbound {
    alloc: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
}

impl Inbound {
    /// Room for `alloc` bytes.
    pub fn new(alloc: u32) -> Self {
        Self { alloc, received: Wrapping(0), forwarded: Wrapping(0), told: Wrapping(0) }
    }

    /// Counts `bytes` that have come; false when the guest had no credit for them.
    pub fn receive(&mut self, bytes: usize) -> bool {
        let held = (self.received - self.forwarded).0;
        match u32::try_from(bytes) {
            Ok(bytes) if bytes <= self.alloc - held => {
                self.received += bytes;
                true
            }
            _ => false,
        }
    }

    /// Counts `bytes` of the received ones that we no longer hold.
    pub fn forward(&mut self, bytes: usize) {
        let held = (self.received - self.forwarded).0;
        self.forwarded += u32::try_from(bytes).map_or(held, |bytes| bytes.min(held));
    }

    /// True when the guest knows of so little room that it should be told of more.
    ///
    /// Half of the buffer: early enough that a guest never runs dry while bytes flow, and one packet for many.
    pub fn is_update_due(&self) -> bool {
        (self.forwarded - self.told).0 >= self.alloc / 2
    }

    /// The two fields that every packet to the guest carries (`buf_alloc`, `fwd_cnt`); the guest then knows.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.alloc, self.forwarded.0)
    }
}

/// What we may still send to the guest.
#[derive(Debug, Default)]
pub struct Outbound {
    sent: Wrapping<u32>,
    peer_alloc: u32,
    peer_forwarded: Wrapping<u32>,
}

impl Outbound {
    /// Takes note of the two fields of a packet from the guest.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_alloc = buf_alloc;
        self.peer_forwarded = Wrapping(fwd_cnt);
    }

    /// Bytes that may be sent now. A guest that contradicts itself gets nothing.
    pub fn available(&self) -> u32 {
        self.peer_alloc.saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// Counts `bytes` that were sent; at most what was available.
    pub fn send(&mut self, bytes: usize) {
        self.sent += u32::try_from(bytes).map_or(self.available(), |b| b.min(self.available()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{Inbound, Outbound};

    #[test]
    fn a_guest_without_credit_is_caught() {
        let mut credit = Inbound::new(10);
        assert!(credit.receive(10));
        assert!(!credit.receive(1));
        credit.forward(4);
        assert!(credit.receive(4));
        assert!(!credit.receive(usize::MAX));
    }

    #[test]
    fn an_update_is_due_before_the_guest_runs_dry() {
        let mut credit = Inbound::new(8);
        assert!(credit.receive(8));
        credit.forward(3);
        assert!(!credit.is_update_due());
        credit.forward(1);
        assert!(credit.is_update_due());
        assert_eq!(credit.tell(), (8, 4));
        assert!(!credit.is_update_due());
    }

    #[test]
    fn a_shrunk_or_contradictory_peer_gets_nothing() {
        let mut credit = Outbound::default();
        credit.learn(100, 0);
        credit.send(60);
        credit.learn(50, 0);
        assert_eq!(credit.available(), 0);
        credit.learn(100, 61);
        assert_eq!(credit.available(), 0);
    }

    proptest! {
        #[test]
        fn what_is_held_never_exceeds_the_buffer(
            alloc in 1u32..100_000,
            steps in prop::collection::vec((any::<bool>(), 0usize..200_000), 0..200),
        ) {
            let mut credit = Inbound::new(alloc);
            for (receive, bytes) in steps {
                if receive { credit.receive(bytes); } else { credit.forward(bytes); }
                assert!((credit.received - credit.forwarded).0 <= alloc);
            }
        }

        #[test]
        fn no_more_is_sent_than_was_granted(
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u16>()), 0..200),
        ) {
            let mut credit = Outbound::default();
            for (alloc, forwarded, bytes) in steps {
                credit.learn(alloc, forwarded);
                let before = credit.available();
                credit.send(usize::from(bytes));
                assert!(before - credit.available() <= u32::from(bytes));
            }
        }
    }
}
