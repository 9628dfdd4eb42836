//! Trees of a Debian release, in which some packages come from elsewhere than the rest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::process::Run;

/// What a tree is made of.
pub struct Debian {
    /// As mmdebstrap knows it: `minbase`, `extract`.
    pub variant: &'static str,
    pub release: &'static str,
    /// Lines of apt's sources.
    pub sources: &'static str,
    /// apt's pins.
    pub preferences: &'static str,
    /// With commas between them.
    pub packages: &'static str,
    /// Name of the log in the cache.
    pub log: &'static str,
}

impl Debian {
    /// Makes the tree; files for apt are laid out in `scratch`, and each line that is said goes to `on_line`.
    pub fn make(&self, scratch: &Path, tree: &Path, on_line: impl FnMut(&str)) -> Result<()> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = scratch.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let sources = write("sources.list", self.sources)?;
        let preferences = write("preferences", self.preferences)?;
        let variant = format!("--variant={}", self.variant);
        let hook = format!(
            "--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\" && cp '{}' \"$1/etc/apt/preferences.d/backports\"",
            preferences.display()
        );
        let include = format!("--include={}", self.packages);
        let log = cache::root()?.join("logs").join(self.log);
        Run::new("mmdebstrap")
            .args([&variant, "--format=directory", "--mode=root", &hook, &include, self.release])
            .args([tree, sources.as_path()])
            .streamed(&log, on_line)
    }
}
