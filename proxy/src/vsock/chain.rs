//! Descriptor chains of a guest, judged and turned into slices of its memory.
//!
//! A guest lays out a packet as it likes: Linux 6.12 puts the header into one descriptor and the payload of a large write
//! into several more. So a chain is a row of bytes, cut anywhere; only the direction and the sum are checked.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, VolatileSlice};

use super::header::HEADER_LEN;

/// Slices of one chain that are looked at. Linux uses at most 18 (a header, 64 KiB in pages); the limit keeps a table of
/// 65,535 one-byte descriptors from costing more than a packet is worth.
const MAX_SEGMENTS: usize = 256;

/// Which way the bytes of a chain go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The guest has written, we read.
    FromGuest,
    /// We write, the guest reads.
    ToGuest,
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor of the other direction.
    #[error("descriptor of the wrong direction")]
    Direction,
    /// A descriptor outside of guest memory.
    #[error("descriptor outside of guest memory")]
    Memory,
    /// Cut into too many descriptors.
    #[error("more than {MAX_SEGMENTS} descriptors")]
    Segments,
    /// No room for a header.
    #[error("shorter than a packet header")]
    Short,
}

/// Where in a list of slices the two parts of one packet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Index of the header's first slice.
    pub start: usize,
    /// Index of the payload's first slice.
    pub payload: usize,
    /// Index behind the payload's last slice.
    pub end: usize,
    /// Bytes of the payload's slices.
    pub payload_len: usize,
}

/// Appends the slices of `chain` to `slices`, cut between header and payload.
///
/// # Errors
/// [`ChainError`]; `slices` is then as before.
pub fn collect<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    direction: Direction,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<Parts, ChainError> {
    let start = slices.len();
    let parts = append(memory, chain, direction, slices);
    if parts.is_err() {
        slices.truncate(start);
    }
    parts
}

fn append<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    direction: Direction,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<Parts, ChainError> {
    let start = slices.len();
    let mut payload = None;
    let mut total = 0_usize;
    for (index, descriptor) in chain.enumerate() {
        if descriptor.is_write_only() != (direction == Direction::ToGuest) {
            return Err(ChainError::Direction);
        }
        if index >= MAX_SEGMENTS || slices.len() - start >= MAX_SEGMENTS {
            return Err(ChainError::Segments);
        }
        for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
            let slice = slice.map_err(|_| ChainError::Memory)?;
            let missing = HEADER_LEN.saturating_sub(total);
            total += slice.len();
            if payload.is_none() && slice.len() > missing {
                let (header, rest) = slice.split_at(missing).map_err(|_| ChainError::Memory)?;
                if missing > 0 {
                    slices.push(header);
                }
                payload = Some(slices.len());
                slices.push(rest);
            } else if !slice.is_empty() {
                slices.push(slice);
            }
        }
    }
    if total < HEADER_LEN {
        return Err(ChainError::Short);
    }
    let end = slices.len();
    Ok(Parts { start, payload: payload.unwrap_or(end), end, payload_len: total - HEADER_LEN })
}

/// Copies the header out of its slices; once, as the guest can change it at any time.
pub fn read_header(slices: &[VolatileSlice<'_>]) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let mut filled = 0;
    for slice in slices {
        filled += slice.copy_to(&mut bytes[filled..]);
    }
    bytes
}

/// Copies a header into its slices.
pub fn write_header(slices: &[VolatileSlice<'_>], bytes: &[u8; HEADER_LEN]) {
    let mut rest = bytes.as_slice();
    for slice in slices {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
    }
}

/// Shortens a list of slices to its first `limit` bytes.
pub fn truncate(slices: &mut Vec<VolatileSlice<'_>>, limit: usize) {
    let mut left = limit;
    for index in 0..slices.len() {
        let len = slices[index].len();
        if len > left {
            if left > 0
                && let Ok(part) = slices[index].subslice(0, left)
            {
                slices[index] = part;
                slices.truncate(index + 1);
            } else {
                slices.truncate(index);
            }
            return;
        }
        left -= len;
    }
}
