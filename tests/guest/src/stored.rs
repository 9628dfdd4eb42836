//! `run --image` with a store that no other test sees.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Kata, Output, image::packed, run};

/// Kata with a store of its own.
#[derive(Debug)]
pub struct Stored {
    /// Itself.
    pub kata: Kata,
    store: tempfile::TempDir,
}

impl Stored {
    /// The installed Kata; `None`, after a word on why, when there is none.
    pub fn installed() -> Option<Self> {
        Some(Self { kata: Kata::installed()?, store: tempfile::tempdir().unwrap() })
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.store.path().join("store")
    }

    /// `run --image`, not started yet.
    pub fn command(&self, image: &str, arguments: &[&str]) -> Command {
        let mut command = self.kata.command(&["run", "--image", image, "--store"]);
        command.arg(self.store()).args(arguments);
        command
    }

    /// The same, to its end, without input.
    pub fn run(&self, image: &str, arguments: &[&str]) -> Output {
        run(self.command(image, arguments), b"")
    }

    /// What there is in a part of the store.
    pub fn names(&self, part: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store().join(part)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// Asserts that no sandbox and nothing unfinished is left.
    pub fn assert_nothing_left(&self, when: &str) {
        let entries = fs::read_dir(self.kata.state()).into_iter().flatten().flatten();
        let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        assert!(names.is_empty(), "{when}: {names:?} in the state directory");
        assert_eq!(self.names("runs"), [""; 0], "{when}: runs");
        assert_eq!(self.names("drafts"), [""; 0], "{when}: drafts");
    }
}

/// Busybox as GNU tar packs it.
pub fn base() -> Option<Vec<u8>> {
    let Some(root) = env::var_os("KATA_TEST_ROOT_BUSYBOX") else {
        println!("SKIP KATA_TEST_ROOT_BUSYBOX is not set; run cargo xtask test");
        return None;
    };
    Some(packed(Path::new(&root)))
}
