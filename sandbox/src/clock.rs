//! Keeps the guest's wall clock at the host's.
//!
//! The guest starts with the host's time and goes on by the processor's counter, whose frequency it was told with an
//! error of some parts in a million; and somebody may set the host's clock. A step of the host is an event (a timer that
//! is cancelled by it); the drift is corrected once a minute, before it is worth a millisecond.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kata_protocol::agent;
use kata_sys::watch::watch;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;

use crate::lifecycle::Sandbox;

/// Ten parts in a million are 0.6 ms a minute.
const CORRECTION: Duration = Duration::from_secs(60);

/// The host's wall clock, nanoseconds since 1970.
pub fn unix_nanoseconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Corrects the guest's clock until the sandbox ends.
pub async fn keep(sandbox: Arc<Sandbox>) {
    loop {
        tokio::select! {
            stepped = step_or_time() => if let Err(error) = stepped {
                tracing::warn!(%error, "watch the host's clock");
                return;
            },
            _ = sandbox.lost() => return,
        }
        let Ok(agent) = sandbox.agent() else { return };
        let time = agent::SetClockRequest { unix_ns: unix_nanoseconds(), ..Default::default() };
        if let Err(error) = agent.set_clock(&time).await {
            tracing::debug!(%error, "set the guest's clock");
        }
    }
}

/// Returns when somebody sets the host's clock, or when a correction is due.
async fn step_or_time() -> io::Result<()> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    let due = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + CORRECTION;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let due = Timespec::try_from(due).map_err(io::Error::other)?;
    let spec = Itimerspec { it_interval: zero, it_value: due };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &spec)?;
    // Readable when it is due, and also when it is cancelled: either way the clock is to be set.
    watch(timer, Interest::READABLE)?.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::unix_nanoseconds;

    #[test]
    fn the_clock_counts_from_1970() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let nanoseconds = u64::try_from(unix_nanoseconds()).unwrap();
        assert!(nanoseconds / 1_000_000_000 - seconds <= 1);
    }
}
