//! Seeding of the kernel's random pool.

use std::{io, os::fd::AsFd, os::fd::AsRawFd};

/// Longest seed that is taken in one call; more adds nothing.
pub const MAX_SEED: usize = 512;

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; MAX_SEED],
}

/// `_IOW('R', 0x03, int[2])` of `linux/random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// Mixes `seed` into the pool behind `random` (`/dev/random` or `/dev/urandom`) and credits every bit of it.
///
/// # Errors
/// `InvalidInput` when the seed is longer than [`MAX_SEED`]; `EPERM` without CAP_SYS_ADMIN.
pub fn credit(random: impl AsFd, seed: &[u8]) -> io::Result<()> {
    if seed.len() > MAX_SEED {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "seed is too long"));
    }
    let length = seed.len() as libc::c_int;
    let mut info = PoolInfo { entropy_bits: length * 8, bytes: length, seed: [0; MAX_SEED] };
    info.seed[..seed.len()].copy_from_slice(seed);
    // SAFETY: the ioctl reads the two lengths and then `bytes` bytes, all within `info`, which outlives
    // the call; nothing is written.
    let result = unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
