//! The configuration fragments: read, and compared with what the kernel's configuration system made of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The fragments of a profile, in the order of their names.
#[derive(Debug, Default)]
pub struct Fragments {
    text: String,
    wanted: BTreeMap<String, String>,
}

impl Fragments {
    /// Reads `DIRECTORY/*.config`. A symbol that two lines set is an error, even to the same value.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let entries =
            fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("list {}", directory.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "config") {
                files.push(path);
            }
        }
        files.sort();
        let mut fragments = Self::default();
        for file in files {
            let text =
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            fragments.add(&text).with_context(|| format!("in {}", file.display()))?;
        }
        Ok(fragments)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        for line in text.lines().map(str::trim_end) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((symbol, value)) = line.split_once('=') else {
                bail!("{line:?} sets nothing; write CONFIG_NAME=value");
            };
            if !symbol.starts_with("CONFIG_") {
                bail!("{line:?} does not name a symbol of the kernel's configuration");
            }
            if self.wanted.insert(symbol.to_owned(), value.to_owned()).is_some() {
                bail!("{symbol} is set twice");
            }
        }
        self.text.push_str(text);
        Ok(())
    }

    /// All fragments as one text: the input of `KCONFIG_ALLCONFIG`, and of the recipe's hash.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Fails when `config`, a `.config`, has not what was asked for: dropped, changed, or on though it should be off.
    pub fn check(&self, config: &str) -> Result<()> {
        let made: BTreeMap<&str, &str> = config
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split_once('='))
            .collect();
        let mut wrong = Vec::new();
        for (symbol, wanted) in &self.wanted {
            let made = made.get(symbol.as_str()).copied().unwrap_or("n");
            if made != wanted {
                wrong.push(format!("{symbol}: wanted {wanted}, is {made}"));
            }
        }
        if !wrong.is_empty() {
            bail!(
                "the kernel's configuration did not take these (renamed, or a dependency is off):\n{}",
                wrong.join("\n")
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(text: &str) -> Fragments {
        let mut fragments = Fragments::default();
        fragments.add(text).unwrap();
        fragments
    }

    #[test]
    fn what_was_asked_for_and_made_passes() {
        let wanted = fragments("# why\nCONFIG_A=y\nCONFIG_B=n\n\nCONFIG_C=\"x\"\n");
        wanted.check("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\nCONFIG_D=y\n").unwrap();
    }

    #[test]
    fn a_dropped_symbol_fails_by_name() {
        let error = fragments("CONFIG_A=y\n").check("# CONFIG_A is not set\n").unwrap_err();
        assert!(error.to_string().contains("CONFIG_A: wanted y, is n"), "{error}");
    }

    #[test]
    fn a_symbol_that_is_on_though_it_should_be_off_fails() {
        let error = fragments("CONFIG_A=n\n").check("CONFIG_A=y\n").unwrap_err();
        assert!(error.to_string().contains("CONFIG_A: wanted n, is y"), "{error}");
    }

    #[test]
    fn a_changed_value_fails() {
        assert!(fragments("CONFIG_NR=64\n").check("CONFIG_NR=8\n").is_err());
    }

    #[test]
    fn a_symbol_is_set_once() {
        assert!(Fragments::default().add("CONFIG_A=y\nCONFIG_A=y\n").is_err());
    }

    #[test]
    fn a_line_that_sets_nothing_is_an_error() {
        assert!(Fragments::default().add("CONFIG_A\n").is_err());
        assert!(Fragments::default().add("A=y\n").is_err());
    }
}
