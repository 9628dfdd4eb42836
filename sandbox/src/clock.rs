//! Keeps the guest's wall clock at the host's.
//!
//! The guest starts with the host's time, late by what the message took, and goes on by the processor's counter, whose
//! frequency it was told with an error of some parts in a million; and somebody may set the host's clock. So it is
//! corrected at once, at each step of the host's clock (a timer that is cancelled by it), and once a minute, before the
//! drift is worth a millisecond.
//!
//! How long a message takes on a busy host nobody knows. But a time that the guest tells was read between the question
//! and the answer: what lies outside of the two is an error for certain, and only so much is corrected. Where an answer
//! took long it says little, so some more are asked for, and what is certain is what all of them say.

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

/// An error that is known so closely needs no further question.
const CLOSE_NS: i64 = 10_000_000;

/// Questions for one correction, on a host on which none is answered soon.
const QUESTIONS: usize = 8;

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
    let mut error = Bounds::UNKNOWN;
    for _ in 0..QUESTIONS {
        let before = unix_nanoseconds();
        let guest = agent.adjust_clock(&agent::AdjustClockRequest::new()).await?.unix_ns;
        let reading = Bounds::read_between(before, guest, unix_nanoseconds());
        // Without one the host's clock was set, and what was known before is no longer so.
        error = reading.map_or(Bounds::UNKNOWN, |reading| error.and(reading));
        if error.width() <= CLOSE_NS {
            break;
        }
    }
    let by_ns = error.for_certain();
    if by_ns.saturating_abs() > TOLERANCE_NS {
        let request = agent::AdjustClockRequest { by_ns, ..Default::default() };
        agent.adjust_clock(&request).await?;
    }
    Ok(())
}

/// Between what the guest's clock is to be moved by, to be right; `least` is never above `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    least: i64,
    most: i64,
}

impl Bounds {
    const UNKNOWN: Self = Self { least: i64::MIN, most: i64::MAX };

    /// What is known of a clock that was read between two moments: nothing, if it was a set back of the host's clock that
    /// made the second one the earlier.
    fn read_between(before: i64, clock: i64, after: i64) -> Option<Self> {
        let bounds =
            Self { least: before.saturating_sub(clock), most: after.saturating_sub(clock) };
        (before <= after).then_some(bounds)
    }

    /// What two readings say together. When they contradict each other one of the clocks was set between them, and the
    /// later one counts.
    fn and(self, later: Self) -> Self {
        let both = Self { least: self.least.max(later.least), most: self.most.min(later.most) };
        if both.least <= both.most { both } else { later }
    }

    fn width(self) -> i64 {
        self.most.saturating_sub(self.least)
    }

    /// How far the clock is wrong at least.
    fn for_certain(self) -> i64 {
        0.clamp(self.least, self.most)
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

    use super::{Bounds, unix_nanoseconds};

    #[test]
    fn only_what_lies_outside_of_question_and_answer_is_an_error() {
        let error = |before, clock, after| {
            Bounds::read_between(before, clock, after).map(Bounds::for_certain)
        };
        assert_eq!(error(100, 100, 900), Some(0));
        assert_eq!(error(100, 900, 900), Some(0));
        assert_eq!(error(100, 60, 900), Some(40));
        assert_eq!(error(100, 950, 900), Some(-50));
        assert_eq!(error(0, i64::MIN, 0), Some(i64::MAX));
        assert_eq!(error(900, 500, 100), None, "the host's clock was set back: that says nothing");
        assert_eq!(Bounds::UNKNOWN.for_certain(), 0);
    }

    #[test]
    fn an_answer_that_took_long_is_made_up_for_by_others() {
        // 130 late; each answer alone took so long that it may be right.
        let asked_late = Bounds::read_between(1000, 1170, 1500).unwrap();
        let answered_late = Bounds::read_between(2000, 1880, 2400).unwrap();
        assert_eq!(asked_late.for_certain(), 0);
        let both = Bounds::UNKNOWN.and(asked_late).and(answered_late);
        assert_eq!(both, Bounds { least: 120, most: 330 });
        assert_eq!((both.for_certain(), both.width()), (120, 210));
        assert_eq!(Bounds::UNKNOWN.width(), i64::MAX);
    }

    #[test]
    fn of_readings_that_contradict_each_other_the_later_counts() {
        let (first, later) = (Bounds { least: 10, most: 20 }, Bounds { least: 30, most: 40 });
        assert_eq!(first.and(later), later);
    }

    #[test]
    fn the_clock_counts_from_1970() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let nanoseconds = u64::try_from(unix_nanoseconds()).unwrap();
        assert!(nanoseconds / 1_000_000_000 - seconds <= 1);
    }
}
