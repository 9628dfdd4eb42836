//! The guest's wall clock and random pool, which are the host's to set.

use std::{fs::File, io};

use kata_sys::entropy;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NS_PER_S: i64 = 1_000_000_000;

/// Sets the wall clock.
pub fn set(unix_ns: i64) -> io::Result<()> {
    let time =
        Timespec { tv_sec: unix_ns.div_euclid(NS_PER_S), tv_nsec: unix_ns.rem_euclid(NS_PER_S) };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Moves the wall clock by a difference, and tells it.
pub fn adjust(by_ns: i64) -> io::Result<i64> {
    if by_ns != 0 {
        set(now().saturating_add(by_ns))?;
    }
    Ok(now())
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(NS_PER_S).saturating_add(now.tv_nsec)
}

/// Mixes the host's entropy into the pool.
pub fn seed(bytes: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    bytes.chunks(entropy::MAX_SEED).try_for_each(|chunk| entropy::credit(&random, chunk))
}
