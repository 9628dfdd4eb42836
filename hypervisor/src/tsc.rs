//! Frequency of the host's time stamp counter, for guests that can't find it out.

use std::{sync::OnceLock, thread, time::Duration};

use kata_sys::tsc::TscReading;

/// A guest under TCG sees the host's counter, and its clock runs on the frequency that it is told: 10 ms with a
/// reading error of 100 ns make 10 ppm, a second a day, which the agent's clock setting corrects.
const LEAST: Duration = Duration::from_millis(10);

/// Measures the frequency over the time between its making and the first question.
#[derive(Debug)]
pub struct TscClock {
    start: Option<TscReading>,
    khz: OnceLock<Option<u32>>,
}

impl TscClock {
    /// Starts the measurement; make it as early as possible in the process, then asking costs nothing.
    pub fn start() -> Self {
        Self { start: TscReading::now(), khz: OnceLock::new() }
    }

    /// The frequency in kHz; `None` where there is no such counter. Blocks for at most 10 ms, the first time.
    pub fn khz(&self) -> Option<u32> {
        *self.khz.get_or_init(|| {
            let start = self.start?;
            if let Some(rest) = LEAST.checked_sub(TscReading::now()?.since(&start)) {
                // Not a wait for something to happen: passing time is what is measured.
                thread::sleep(rest);
            }
            TscReading::now()?.khz_since(&start)
        })
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::TscClock;

    #[test]
    fn two_clocks_agree_within_a_tenth_of_a_percent() {
        let khz = || f64::from(TscClock::start().khz().unwrap());
        let (first, second) = (khz(), khz());
        assert!((first / second - 1.0).abs() < 0.001, "{first} {second}");
    }
}
