//! How much a link may carry: a token bucket (`tbf`) in front of the tap, and one in front of the engine's link.
//!
//! The tap's goes with it. That of a link is in the ledger, and is known by its handle: of somebody else's nothing is replaced.

use std::{fmt, num::NonZeroU32};

use futures_util::TryStreamExt;
use rtnetlink::{
    Error, Handle,
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage, TcOption},
    },
};

use super::redirect::{acknowledged, unless_gone};

/// Of our buckets, and of nobody else's: the kernel gives numbers from 0x8000 on.
const OURS: TcHandle = TcHandle { major: 0x6b61, minor: 0 };

const KIND: &str = "tbf";
/// TCA_TBF_PARMS, TCA_TBF_RATE64 and TCA_TBF_BURST.
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// TC_LINKLAYER_ETHERNET.
const ETHERNET: u8 = 1;

/// The largest segment that is handed over whole is 64 KiB long, and so is the largest MTU.
const LEAST_BURST: u64 = 128 << 10;
const LEAST_QUEUE: u64 = 256 << 10;
/// How long the bucket takes to fill, and what waits to be sent, as parts of a second.
const BURST_PART: u64 = 100;
const QUEUE_PART: u64 = 20;

/// A rate in units of 1000 bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// None for zero, which is no limit.
    pub fn new(kbit_s: u32) -> Option<Self> {
        NonZeroU32::new(kbit_s).map(Self)
    }

    fn bytes_s(self) -> u64 {
        u64::from(self.0.get()) * 125
    }

    fn burst(self) -> u32 {
        saturated((self.bytes_s() / BURST_PART).max(LEAST_BURST))
    }

    /// `struct tc_tbf_qopt`, without a peak rate.
    fn parameters(self) -> Vec<u8> {
        let queue = (self.bytes_s() / QUEUE_PART).max(LEAST_QUEUE) + u64::from(self.burst());
        let mut bytes = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        bytes.extend(saturated(self.bytes_s()).to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(saturated(queue).to_ne_bytes());
        // The burst is told in bytes, the table of times is the kernel's own.
        bytes.extend([0; 8]);
        bytes
    }
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kbit/s", self.0)
    }
}

/// Most that each link may carry, where there is a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// To the guest.
    pub inbound: Option<Rate>,
    /// From it.
    pub outbound: Option<Rate>,
}

impl fmt::Display for Rates {
    /// What follows the way of a link.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rate, way) in [(self.inbound, "to"), (self.outbound, "from")] {
            if let Some(rate) = rate {
                write!(f, ", at most {rate} {way} the guest")?;
            }
        }
        Ok(())
    }
}

/// The kind of the queueing discipline that somebody has given to a link; none where it has its default, or ours.
pub(super) async fn others(handle: &Handle, link: u32) -> Result<Option<String>, Error> {
    let mut found = handle.qdisc().get().index(link.cast_signed()).execute();
    let mut kind = None;
    while let Some(message) = found.try_next().await? {
        let header = &message.header;
        let made = header.handle.major != 0 && header.handle != OURS;
        if header.index == link.cast_signed() && header.parent == TcHandle::ROOT && made {
            kind = message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.clone()),
                _ => None,
            });
        }
    }
    Ok(kind)
}

/// Limits what leaves by a link.
pub(super) async fn limit(handle: &Handle, link: u32, rate: Rate) -> Result<(), Error> {
    let mut options = vec![
        DefaultNla::new(PARAMETERS, rate.parameters()),
        DefaultNla::new(BURST, rate.burst().to_ne_bytes().into()),
    ];
    if rate.bytes_s() > u32::MAX.into() {
        options.push(DefaultNla::new(RATE64, rate.bytes_s().to_ne_bytes().into()));
    }
    let mut message = root(link);
    message.attributes = vec![
        TcAttribute::Kind(KIND.into()),
        TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    acknowledged(handle, request).await
}

/// Takes the limit away; what is gone already, with its link or without, is no error.
pub(super) async fn lift(handle: &Handle, link: u32) -> Result<(), Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(root(link)));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    unless_gone(acknowledged(handle, request).await)
}

fn root(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.header.handle = OURS;
    message
}

#[cfg(test)]
mod tests {
    use super::{LEAST_BURST, LEAST_QUEUE, Rate, Rates};

    fn word(bytes: &[u8], at: usize) -> u64 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()).into()
    }

    #[test]
    fn a_bucket_takes_whole_segments_however_slow_it_is() {
        let slow = Rate::new(1).unwrap();
        let parameters = slow.parameters();
        assert_eq!((parameters.len(), word(&parameters, 8)), (36, 125));
        assert_eq!(word(&parameters, 24), LEAST_QUEUE + LEAST_BURST);
        assert_eq!(u64::from(slow.burst()), LEAST_BURST);
    }

    #[test]
    fn a_fast_one_holds_ten_milliseconds() {
        let fast = Rate::new(8_000_000).unwrap();
        assert_eq!((fast.bytes_s(), fast.burst()), (1_000_000_000, 10_000_000));
        assert_eq!(word(&fast.parameters(), 24), 60_000_000);
        let fastest = Rate::new(1_000_000_000).unwrap();
        assert_eq!(word(&fastest.parameters(), 8), u64::from(u32::MAX));
    }

    #[test]
    fn no_limit_is_not_told() {
        let rates = Rates { inbound: Rate::new(0), outbound: Rate::new(64) };
        assert_eq!(rates.to_string(), ", at most 64 kbit/s from the guest");
        assert_eq!(Rates::default().to_string(), "");
    }
}
