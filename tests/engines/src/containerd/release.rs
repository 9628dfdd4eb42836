//! The releases of containerd that are on this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    directory: PathBuf,
}

impl Release {
    /// The one that Debian has installed; `None`, after a word on it, when there is none.
    pub fn installed() -> Option<Self> {
        let release = Self { directory: "/usr/bin".into() };
        if !release.program("containerd").exists() {
            println!("SKIP containerd is not installed");
            return None;
        }
        Some(release)
    }

    /// Those of later Debians, the oldest first; none, after a word on it, when they were not made.
    pub fn later() -> Vec<Self> {
        let Some(all) = env::var_os("KATA_TEST_CONTAINERDS") else {
            println!("SKIP KATA_TEST_CONTAINERDS is not set; run cargo xtask test");
            return Vec::new();
        };
        let entries = fs::read_dir(all).unwrap().flatten();
        let mut directories: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        directories.sort();
        directories.into_iter().map(|directory| Self { directory }).collect()
    }

    /// Those that a claim about every containerd is to be tried on: all of them in a full run, else the installed one.
    pub fn tried() -> Vec<Self> {
        let later = if env::var_os("KATA_TEST_FULL").is_some() { Self::later() } else { vec![] };
        Self::installed().into_iter().chain(later).collect()
    }

    /// Whether it is containerd 2.
    pub fn is_second(&self) -> bool {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("2.")
    }

    /// Where its programs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
