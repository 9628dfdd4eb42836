//! What could not be tested, counted, so that a green run cannot hide it.

use anyhow::{Result, anyhow, bail};

use super::failures::Failures;
use crate::cache;
use crate::process::Run;

/// Set by `.ci/run`: there, a test may be skipped only for one of the reasons below.
const CI: &str = "KATA_CI";
/// What no machine of CI can give: hardware virtualisation, kinds of links that its kernel lacks (the nested host has
/// them), and a tool that takes longer to build than to wait for.
const ALLOWED_IN_CI: &[&str] = &["KVM", "kind of link", "cargo-deny"];

/// The reasons, one a skipped test or tier.
#[derive(Debug, Default)]
pub struct Skips(Vec<String>);

impl Skips {
    /// Notes and shows one.
    pub fn add(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        println!("SKIP {reason}");
        self.0.push(reason);
    }

    /// Runs tests, shows what they write, and notes each line `SKIP <reason>` of it.
    pub fn watch(&mut self, tests: Run) -> Result<()> {
        let log = cache::root()?.join("logs/test.log");
        let mut failures = Failures::default();
        let outcome = tests.streamed(&log, |line| {
            self.line(line);
            failures.line(line);
        });
        // All that the tests wrote was shown already: what ran, how it ended, and what failed is enough. Where no test says that it
        // has failed, as when none could be built, the end of it all is.
        outcome.map_err(|error| match failures.told() {
            told if told.is_empty() => error,
            told => anyhow!("{}\n{told}", error.to_string().lines().next().unwrap_or_default()),
        })
    }

    /// Shows a line that a test has written, and notes the reason when it says SKIP, which is returned.
    pub fn line(&mut self, line: &str) -> Option<String> {
        println!("{line}");
        let reason = reason(line);
        self.0.extend(reason.clone());
        reason
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Fails in CI when something was skipped that must not be.
    pub fn judge(&self) -> Result<()> {
        let refused = self.refused();
        if std::env::var_os(CI).is_some() && !refused.is_empty() {
            bail!("skipped, though CI must run it: {}", refused.join("; "));
        }
        Ok(())
    }

    fn refused(&self) -> Vec<&str> {
        let allowed = |reason: &str| ALLOWED_IN_CI.iter().any(|word| reason.contains(word));
        self.0.iter().map(String::as_str).filter(|reason| !allowed(reason)).collect()
    }
}

fn reason(line: &str) -> Option<String> {
    line.trim_start().strip_prefix("SKIP ").map(|reason| reason.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_says_skip_gives_its_reason() {
        assert_eq!(reason("SKIP no KVM here").as_deref(), Some("no KVM here"));
        assert_eq!(reason("  SKIP no KVM here\n").as_deref(), Some("no KVM here"));
        assert_eq!(reason("test skip_is_counted ... ok"), None);
    }

    #[test]
    fn only_listed_reasons_may_be_skipped_in_ci() {
        let skips = Skips(vec!["no KVM here".to_owned(), "not root".to_owned()]);
        assert_eq!(skips.refused(), ["not root"]);
        assert_eq!(skips.count(), 2);
    }
}
