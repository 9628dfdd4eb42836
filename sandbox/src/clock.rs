//! Keeps the guest's wall clock at the host's.
//!
//! The guest starts with the host's time, late by what the message took, and goes on by the processor's counter, whose
//! frequency it was told with an error of some parts in a million; and somebody may set the host's clock. So it is
//! corrected at once, at each step of the host's clock (a timer that is cancelled by it), and once a minute, before the
//! drift is worth a millisecond.
//!
//! How long a message takes on a busy host nobody knows. But a time that the guest tells was read between the question
//! and the answer: what lies outside of the two is an error for certain, and only so much is corrected.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kata_protocol::agent;
use kata_sys::watch::watch;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    agent::{Agent, AgentError},
    lifecycle::Sandbox,
};

/// Ten parts in a million are 0.6 ms a minute.
const CORRECTION: Duration = Duration::from_secs(60);

/// Not worth a step.
const TOLERANCE_NS: i64 = 1_000_000;

/// The host's wall clock, nanoseconds since 1970.
pub fn unix_nanoseconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Corrects the guest's clock until the sandbox ends.
pub async fn keep(sandbox: Arc<Sandbox>) {
    loop {
        // Before the correction: a step in the middle of it is another one's reason.
        let due = match step_or_time() {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "watch the host's clock");
                return;
            }
        };
        let Ok(agent) = sandbox.agent() else { return };
        if let Err(error) = correct(&agent).await {
            tracing::debug!(%error, "correct the guest's clock");
        }
        tokio::select! {
            // Readable when it is due, and also when it is cancelled.
            _ = due.readable() => {}
            _ = sandbox.lost() => return,
        }
    }
}

async fn correct(agent: &Agent) -> Result<(), AgentError> {
    let before = unix_nanoseconds();
    let guest = agent.adjust_clock(&agent::AdjustClockRequest::new()).await?.unix_ns;
    let by_ns = error_for_certain(before, guest, unix_nanoseconds());
    if by_ns.saturating_abs() > TOLERANCE_NS {
        let request = agent::AdjustClockRequest { by_ns, ..Default::default() };
        agent.adjust_clock(&request).await?;
    }
    Ok(())
}

/// How far a clock is to be moved that was read between two moments.
fn error_for_certain(before: i64, clock: i64, after: i64) -> i64 {
    match clock {
        clock if clock < before => before.saturating_sub(clock),
        clock if clock > after => after.saturating_sub(clock),
        _ => 0,
    }
}

/// Readable when somebody sets the host's clock, or when a correction is due.
fn step_or_time() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    let due = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + CORRECTION;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let due = Timespec::try_from(due).map_err(io::Error::other)?;
    let spec = Itimerspec { it_interval: zero, it_value: due };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &spec)?;
    watch(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::{error_for_certain, unix_nanoseconds};

    #[test]
    fn only_what_lies_outside_of_question_and_answer_is_an_error() {
        assert_eq!(error_for_certain(100, 100, 900), 0);
        assert_eq!(error_for_certain(100, 900, 900), 0);
        assert_eq!(error_for_certain(100, 60, 900), 40);
        assert_eq!(error_for_certain(100, 950, 900), -50);
        assert_eq!(error_for_certain(0, i64::MIN, 0), i64::MAX);
    }

    #[test]
    fn the_clock_counts_from_1970() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let nanoseconds = u64::try_from(unix_nanoseconds()).unwrap();
        assert!(nanoseconds / 1_000_000_000 - seconds <= 1);
    }
}
