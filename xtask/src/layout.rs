//! Where things are: the tree, what cargo builds, and the layout of an installation.
//!
//! `target/kata` is laid out as an installation is, so that `kata-runtime` finds the rest of Kata relative to its own
//! executable by one rule: `../libexec/kata` and `../share/kata`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The triple that `.cargo/config.toml` builds for; the output directory of cargo carries it.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The programs of the host.
pub const HOST_PROGRAMS: &[&str] =
    &["kata-runtime", "containerd-shim-kata-v2", "kata-monitor", "kata-proxy"];

/// The files of an installation, below its prefix, with their modes.
pub const FILES: &[(&str, u32)] = &[
    ("bin/kata-runtime", 0o755),
    ("bin/containerd-shim-kata-v2", 0o755),
    ("libexec/kata/kata-monitor", 0o755),
    ("libexec/kata/kata-proxy", 0o755),
    ("share/kata/vmlinux", 0o644),
    ("share/kata/initrd.img", 0o644),
];

/// Directories that an installation shares with others, and how the names of Kata's files in them begin: what
/// `kata-runtime` says of itself to shells and to man.
pub const SHARED: &[(&str, &str)] = &[
    ("share/man/man8", "kata-runtime"),
    ("share/bash-completion/completions", "kata-runtime"),
    ("share/zsh/site-functions", "_kata-runtime"),
    ("share/fish/vendor_completions.d", "kata-runtime"),
];

/// The directories of an installation that are Kata's alone.
pub const DIRECTORIES: &[&str] = &["libexec/kata", "share/kata"];

/// The checked-out tree.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The tree that this xtask was built from; it must still be there.
    pub fn locate() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set; run `cargo xtask`, not the program itself")?;
        let root = Path::new(&manifest).parent().context("xtask has no folder above it")?;
        if !root.join("Cargo.lock").is_file() {
            bail!("{} is not the root of the tree", root.display());
        }
        Ok(Self { root: root.to_owned() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(target) => self.root.join(target),
            None => self.root.join("target"),
        }
    }

    /// Where cargo puts what it builds for users.
    pub fn built(&self) -> PathBuf {
        self.target().join(TRIPLE).join("release")
    }

    /// Where cargo puts what it builds for tests.
    pub fn built_for_tests(&self) -> PathBuf {
        self.target().join(TRIPLE).join("debug")
    }

    /// The installation inside the target directory.
    pub fn staged(&self) -> Prefix {
        Prefix(self.target().join("kata"))
    }
}

/// A directory with `bin`, `libexec/kata` and `share/kata`.
#[derive(Clone, Debug)]
pub struct Prefix(pub PathBuf);

impl Prefix {
    pub fn runtime(&self) -> PathBuf {
        self.0.join("bin/kata-runtime")
    }

    /// Where a program of ours is: what engines look up in `PATH` in `bin`, the rest in `libexec`.
    pub fn program(&self, name: &str) -> PathBuf {
        match name {
            "kata-runtime" | "containerd-shim-kata-v2" => self.0.join("bin").join(name),
            _ => self.0.join("libexec/kata").join(name),
        }
    }

    pub fn share(&self) -> PathBuf {
        self.0.join("share/kata")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_the_host_is_installed_where_it_is_looked_up() {
        let prefix = Prefix(PathBuf::new());
        for name in HOST_PROGRAMS {
            let place = prefix.program(name);
            assert!(FILES.iter().any(|(file, _)| Path::new(file) == place), "{name}");
        }
    }
}
