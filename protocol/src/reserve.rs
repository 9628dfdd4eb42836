//! What containers leave to the guest that they are in: the agent holds them to the rest, and the host makes the guest that much
//! larger.

/// Bytes of memory for the agent, its helpers and the kernel, of which a large guest's keeps a 1024th of all free.
pub fn memory(all: u64) -> u64 {
    (24 << 20) + all / 1024
}
