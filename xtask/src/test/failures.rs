//! What tests that failed have said, to be told again at the end: between the thousands of lines of those that passed, or where
//! only the end of a log is kept, nobody finds it.

use std::collections::VecDeque;

/// What is told again at most.
const LINES: usize = 80;

/// The parts of the output of test programs that are about failures, the last of them: the names of all that failed come last.
#[derive(Debug, Default)]
pub struct Failures {
    within: bool,
    lines: VecDeque<String>,
    is_cut: bool,
}

impl Failures {
    /// Takes a line that tests have written; libtest writes all of them in this order: what those that passed have written, then
    /// what those that failed have, then the names of these.
    pub fn line(&mut self, line: &str) {
        match line {
            "failures:" => self.within = true,
            "successes:" => self.within = false,
            line if line.starts_with("test result: ") => self.within = false,
            line if self.within && !line.trim().is_empty() => self.keep(line),
            _ => {}
        }
    }

    fn keep(&mut self, line: &str) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
            self.is_cut = true;
        }
        self.lines.push_back(line.to_owned());
    }

    /// What to tell; empty where no test has failed.
    pub fn told(mut self) -> String {
        if self.is_cut {
            self.lines.push_front("[more is in the log]".to_owned());
        }
        self.lines.make_contiguous().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_without_what_passed() {
        let mut failures = Failures::default();
        let output = "running 2 tests\n\nsuccesses:\n\n---- one stdout ----\nSKIP no KVM\n\n\nfailures:\n\n---- two stdout ----\n\
                      left: 1\n\n\nfailures:\n    two\n\ntest result: FAILED. 1 passed\nrunning 1 test";
        output.lines().for_each(|line| failures.line(line));
        assert_eq!(failures.told(), "---- two stdout ----\nleft: 1\n    two");
    }

    #[test]
    fn of_a_flood_the_end_is_told() {
        let mut failures = Failures::default();
        failures.line("failures:");
        (0..1000).for_each(|number| failures.line(&format!("line {number}")));
        let told = failures.told();
        assert_eq!(told.lines().count(), LINES + 1);
        assert!(told.starts_with("[more") && told.ends_with("line 999"), "{told}");
        assert_eq!(Failures::default().told(), "");
    }
}
