//! The two queues of the device: packets out of the guest's transmit queue, packets into its receive queue.
//!
//! Works on queues and memory alone, so that it can be tested with hostile ones. A queue that contradicts itself (an
//! index out of range, a ring outside of memory) is an error and not looked at again before the driver has reset it:
//! there is nothing to answer to, and looking again would be a loop that the guest controls.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::{
    chain::{self, Direction, Parts},
    connection::Connection,
    header::{HEADER_LEN, Header, MAX_PAYLOAD},
    muxer::{Announcer, Muxer},
};

/// Chains of one queue that are handled before the other queue gets its turn.
const BUDGET: usize = 128;

/// A queue that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("queue of the guest is broken")]
pub struct BrokenQueue(#[from] virtio_queue::Error);

/// How a pass over one queue went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Chains were given back to the guest.
    pub used: bool,
    /// The pass ended for its budget; there may be more to do right now.
    pub more: bool,
}

/// The guest's buffers of one turn.
#[derive(Default)]
struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    chains: Vec<(u16, Parts)>,
}

impl<'m> Buffers<'m> {
    fn header(&self, index: usize) -> &[VolatileSlice<'m>] {
        let (_, parts) = self.chains[index];
        &self.slices[parts.start..parts.payload]
    }
}

/// Handles what the guest has sent, until nothing is left, the budget is used up, or the guest has to take resets first.
///
/// # Errors
/// [`BrokenQueue`].
pub fn transmit<A: Announcer>(
    muxer: &mut Muxer<A>,
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
) -> Result<Progress, BrokenQueue> {
    let mut progress = Progress::default();
    let mut slices = Vec::new();
    for _ in 0..BUDGET {
        if muxer.is_congested() {
            return Ok(progress);
        }
        let Some(chain) = queue.iter(memory)?.next() else {
            return Ok(progress);
        };
        let head = chain.head_index();
        slices.clear();
        match chain::collect(memory, chain, Direction::FromGuest, &mut slices) {
            Ok(parts) => deliver(muxer, &mut slices, parts),
            Err(cause) => tracing::debug!(%cause, "packet of the guest dropped"),
        }
        queue.add_used(memory, head, 0)?;
        progress.used = true;
    }
    progress.more = true;
    Ok(progress)
}

fn deliver<A: Announcer>(muxer: &mut Muxer<A>, slices: &mut Vec<VolatileSlice<'_>>, parts: Parts) {
    let header = Header::parse(&chain::read_header(&slices[..parts.payload]));
    let len = header.len as usize;
    if len > MAX_PAYLOAD || len > parts.payload_len {
        return muxer.on_malformed(&header);
    }
    chain::truncate(slices, HEADER_LEN + len);
    muxer.on_packet(&header, &slices[parts.payload..]);
}

/// Fills the guest's buffers, one connection after the other, until nothing is left to say, the buffers are used up, or
/// the budget is.
///
/// # Errors
/// [`BrokenQueue`].
pub fn receive<A: Announcer>(
    muxer: &mut Muxer<A>,
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
) -> Result<Progress, BrokenQueue> {
    let mut progress = Progress::default();
    let mut spent = 0;
    let mut buffers = Buffers::default();
    while spent < BUDGET {
        let before = queue.next_used();
        let starved = if let Some(header) = muxer.reset_packet() {
            gather(queue, memory, 1, &mut buffers)?;
            if buffers.chains.is_empty() {
                muxer.return_reset(header);
            } else {
                put(queue, memory, &buffers, 0, &header)?;
            }
            buffers.chains.is_empty()
        } else if let Some(index) = muxer.take_turn() {
            let starved = match muxer.connection(index) {
                Some(connection) => turn(connection, queue, memory, &mut buffers)?,
                None => false,
            };
            muxer.end_turn(index);
            starved
        } else {
            return Ok(progress);
        };
        let used = usize::from(queue.next_used().wrapping_sub(before));
        progress.used |= used > 0;
        if starved {
            return Ok(progress);
        }
        // A turn that found nothing to read costs as well.
        spent += used.max(1);
    }
    progress.more = true;
    Ok(progress)
}

/// One connection's turn; true when the guest has no buffer for it.
fn turn<'m>(
    connection: &mut Connection,
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    buffers: &mut Buffers<'m>,
) -> Result<bool, BrokenQueue> {
    gather(queue, memory, connection.burst(), buffers)?;
    let available = buffers.chains.len();
    let mut next = 0;
    while next < available
        && let Some(header) = connection.control_packet()
    {
        put(queue, memory, buffers, next, &header)?;
        next += 1;
    }
    let limit = connection.read_limit();
    if next < available && limit > 0 {
        let mut payload = Vec::with_capacity(available);
        for (_, parts) in &buffers.chains[next..] {
            payload.extend_from_slice(&buffers.slices[parts.payload..parts.end]);
        }
        chain::truncate(&mut payload, limit);
        let mut left = connection.read(&payload);
        while left > 0 && next < available {
            let len = left.min(buffers.chains[next].1.payload_len);
            let header = connection.data_packet(u32::try_from(len).unwrap_or(u32::MAX));
            put(queue, memory, buffers, next, &header)?;
            left -= len;
            next += 1;
        }
    }
    // Chains are taken in order, so those that are left are the last ones.
    let unused = u16::try_from(available - next).unwrap_or(0);
    queue.set_next_avail(queue.next_avail().wrapping_sub(unused));
    Ok(available == 0)
}

/// Takes up to `count` buffers off the queue; useless ones are given back empty.
fn gather<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    count: usize,
    buffers: &mut Buffers<'m>,
) -> Result<(), BrokenQueue> {
    buffers.slices.clear();
    buffers.chains.clear();
    for _ in 0..BUDGET {
        if buffers.chains.len() >= count {
            break;
        }
        let mut available = queue.iter(memory)?;
        let Some(chain) = available.next() else { break };
        let head = chain.head_index();
        match chain::collect(memory, chain, Direction::ToGuest, &mut buffers.slices) {
            Ok(parts) if parts.payload_len > 0 => buffers.chains.push((head, parts)),
            // Given back when it is the first: buffers must be used in order.
            _ if !buffers.chains.is_empty() => {
                available.go_to_previous_position();
                break;
            }
            _ => {
                buffers.slices.clear();
                queue.add_used(memory, head, 0)?;
            }
        }
    }
    Ok(())
}

/// Completes a buffer whose payload, if any, is in place.
fn put(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    buffers: &Buffers<'_>,
    index: usize,
    header: &Header,
) -> Result<(), BrokenQueue> {
    chain::write_header(buffers.header(index), &header.encode());
    let (head, _) = buffers.chains[index];
    let written = header.len.saturating_add(HEADER_LEN as u32);
    Ok(queue.add_used(memory, head, written)?)
}
