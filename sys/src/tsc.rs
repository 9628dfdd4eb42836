//! The processor's time stamp counter, read beside the clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The counter and the raw monotonic clock at one moment.
#[derive(Debug, Clone, Copy)]
pub struct TscReading {
    counter: u64,
    clock: Duration,
}

impl TscReading {
    /// Reads both; `None` where there is no such counter.
    ///
    /// Of a few attempts it keeps the one in which clock, counter, clock followed each other fastest: the others
    /// were interrupted.
    pub fn now() -> Option<Self> {
        (0..5)
            .filter_map(|_| {
                let before = clock();
                let counter = counter()?;
                let gap = clock().checked_sub(before)?;
                Some((gap, Self { counter, clock: before + gap / 2 }))
            })
            .min_by_key(|(gap, _)| *gap)
            .map(|(_, reading)| reading)
    }

    /// Time that has passed since an earlier reading.
    pub fn since(&self, earlier: &Self) -> Duration {
        self.clock.saturating_sub(earlier.clock)
    }

    /// Frequency of the counter since an earlier reading; `None` when no time has passed.
    pub fn khz_since(&self, earlier: &Self) -> Option<u32> {
        let cycles = u128::from(self.counter.checked_sub(earlier.counter)?);
        let khz = (cycles * 1_000_000).checked_div(self.since(earlier).as_nanos())?;
        u32::try_from(khz).ok().filter(|khz| *khz > 0)
    }
}

fn clock() -> Duration {
    let time = clock_gettime(ClockId::MonotonicRaw);
    // The kernel's clocks are never negative, and nanoseconds are below 10^9.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has rdtsc; it touches no memory.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::TscReading;

    #[test]
    fn the_frequency_is_that_of_a_processor() {
        let first = TscReading::now().unwrap();
        let mut last = first;
        while last.since(&first).as_millis() < 5 {
            last = TscReading::now().unwrap();
        }
        let khz = last.khz_since(&first).unwrap();
        assert!((100_000..10_000_000).contains(&khz), "{khz}");
        assert_eq!(first.khz_since(&first), None);
        assert_eq!(first.khz_since(&last), None);
    }
}
