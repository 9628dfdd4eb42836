//! Root file systems for containers.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// A root file system of one test's own.
#[derive(Debug)]
pub struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    /// Its path, as an argument.
    pub fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// Host path of a file in it.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }
}

/// A copy of the busybox root, or `None` (and a word on why) where there is none.
pub fn busybox() -> Option<Root> {
    copy("KATA_TEST_ROOT_BUSYBOX")
}

/// A copy of the Debian root (python3, apt), or `None` where there is none.
pub fn debian() -> Option<Root> {
    copy("KATA_TEST_ROOT_DEBIAN")
}

fn copy(variable: &str) -> Option<Root> {
    let Some(from) = env::var_os(variable) else {
        println!("SKIP {variable} is not set; run cargo xtask test");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    let from = Path::new(&from).join(".");
    let copied = Command::new("cp").arg("-a").arg(from).arg(directory.path()).status().unwrap();
    assert!(copied.success());
    Some(Root { directory })
}
