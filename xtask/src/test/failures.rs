//! What tests that failed have said, to be told again at the end: between the thousands of lines of those that passed, or where
//! only the end of a log is kept, nobody finds it.

/// What is told again at most.
const LINES: usize = 80;

/// The parts of the output of test programs that are about failures.
#[derive(Debug, Default)]
pub struct Failures {
    within: bool,
    lines: Vec<String>,
}

impl Failures {
    /// Takes a line that tests have written; libtest writes all of them in this order: what those that passed have written, then
    /// what those that failed have, then the names of these.
    pub fn line(&mut self, line: &str) {
        match line {
            "failures:" => self.within = true,
            "successes:" => self.within = false,
            line if line.starts_with("test result: ") => self.within = false,
            line if self.within && !line.trim().is_empty() => self.lines.push(line.to_owned()),
            _ => {}
        }
    }

    /// What to tell; empty where no test has failed.
    pub fn told(&self) -> String {
        let mut told = self.lines[..self.lines.len().min(LINES)].join("\n");
        if self.lines.len() > LINES {
            told.push_str("\n[more is in the log]");
        }
        told
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
    fn a_flood_is_cut() {
        let mut failures = Failures::default();
        failures.line("failures:");
        (0..1000).for_each(|_| failures.line("panicked"));
        assert_eq!(failures.told().lines().count(), LINES + 1);
        assert_eq!(Failures::default().told(), "");
    }
}
