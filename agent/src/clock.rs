//! The guest's wall clock and random pool, which are the host's to set.

use std::{fs::File, io};

use kata_sys::entropy;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NS_PER_S: i64 = 1_000_000_000;

/// A difference that a request's way through the machine explains is left alone.
const TOLERANCE_NS: i64 = 1_000_000;

/// Sets the wall clock to the host's.
pub fn set(unix_ns: i64) -> io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let now = now.tv_sec.saturating_mul(NS_PER_S).saturating_add(now.tv_nsec);
    if now.saturating_sub(unix_ns).saturating_abs() <= TOLERANCE_NS {
        return Ok(());
    }
    let time =
        Timespec { tv_sec: unix_ns.div_euclid(NS_PER_S), tv_nsec: unix_ns.rem_euclid(NS_PER_S) };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Mixes the host's entropy into the pool.
pub fn seed(bytes: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    bytes.chunks(entropy::MAX_SEED).try_for_each(|chunk| entropy::credit(&random, chunk))
}
