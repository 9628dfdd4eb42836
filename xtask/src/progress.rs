//! What a person sees of a long step: what it is, how far it is, how long it will take, how long it took.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines of progress where output is not a terminal: a log should show life without drowning in it.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A step under way.
#[derive(Debug)]
pub struct Step {
    name: String,
    started: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Step {
    pub fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        println!("==> {name}");
        let terminal = std::io::stdout().is_terminal();
        Self { name, started: Instant::now(), shown: None, terminal }
    }

    /// Shows that `done` of `expected` units are made, with an estimate of the time that is left.
    pub fn advance(&mut self, done: usize, expected: usize) {
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= LOG_INTERVAL);
        if !self.terminal && !due {
            return;
        }
        self.shown = Some(Instant::now());
        let line = format!(
            "    {done} of about {expected}{}",
            match remaining(self.started.elapsed(), done, expected) {
                Some(left) => format!(", {} left", human(left)),
                None => String::new(),
            }
        );
        if self.terminal {
            print!("\r{line}\x1b[K");
            // A terminal that is gone is no reason to stop the work.
            drop(std::io::stdout().flush());
        } else {
            println!("{line}");
        }
    }

    /// Ends the step, saying what came of it.
    pub fn end(self, outcome: impl AsRef<str>) {
        if self.terminal && self.shown.is_some() {
            print!("\r\x1b[K");
        }
        let took = human(self.started.elapsed());
        println!("    {}: {} ({took})", self.name, outcome.as_ref());
    }
}

fn remaining(elapsed: Duration, done: usize, expected: usize) -> Option<Duration> {
    // Before a twentieth is done the rate says nothing.
    if done == 0 || done * 20 < expected || done >= expected {
        return None;
    }
    Some(elapsed.mul_f64((expected - done) as f64 / done as f64))
}

/// A duration as a person says it: `0.4 s`, `12 s`, `5 min 36 s`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_in_the_unit_that_fits() {
        let said = [400, 12_900, 336_000].map(|ms| human(Duration::from_millis(ms)));
        assert_eq!(said, ["0.4 s", "12 s", "5 min 36 s"]);
    }

    #[test]
    fn half_done_takes_as_long_again() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 50, 100), Some(minute));
    }

    #[test]
    fn there_is_no_estimate_from_too_little_or_beyond_the_expected() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 4, 100), None);
        assert_eq!(remaining(minute, 101, 100), None);
        assert_eq!(remaining(minute, 0, 0), None);
    }
}
