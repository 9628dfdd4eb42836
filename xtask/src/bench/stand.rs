//! What every measurement stands on: a copy of the built programs, a root file system, a guest for bare VMs, a place
//! for state. The copy keeps a build that happens meanwhile, and other users of the same files, out of the figures.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kata_image::Initrd;
use serde_json::{Value, json};

use crate::build::{copy_file, replace_file};
use crate::layout::{FILES, Prefix, Workspace};
use crate::process::Run;

/// Small files that are read, and as many that are made.
pub const SMALL_FILES: usize = 500;
const SMALL_FILE: [u8; 4096] = [b'x'; 4096];

/// The program in a container's root.
pub const PROGRAM: &str = "/bench";

/// The directory of small files in a container's root.
pub const DATA: &str = "/data";

#[derive(Debug)]
pub struct Stand {
    scratch: PathBuf,
}

impl Stand {
    /// Lays everything out in a new directory, which is removed when the stand is dropped.
    pub fn new(workspace: &Workspace, program: &Path) -> Result<Self> {
        let scratch = std::env::temp_dir().join(format!("kata-bench-{}", std::process::id()));
        let stand = Self { scratch };
        let staged = workspace.staged();
        for (name, mode) in FILES {
            copy_file(&staged.0.join(name), &stand.prefix().0.join(name), *mode)?;
        }
        for name in ["dev", "proc", "sys", "tmp", "data/read"] {
            let directory = stand.root().join(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        for number in 0..SMALL_FILES {
            let file = stand.root().join("data/read").join(number.to_string());
            fs::write(&file, SMALL_FILE).with_context(|| format!("write {}", file.display()))?;
        }
        copy_file(program, &stand.root().join("bench"), 0o755)?;
        replace_file(&stand.initrd(), 0o644, |out| Ok(stand.guest()?.write_to(out)?))?;
        Ok(stand)
    }

    /// An initrd that starts the benchmark's program.
    pub fn guest(&self) -> Result<Initrd> {
        let program = self.root().join("bench");
        let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        Ok(Initrd::new(bytes))
    }

    pub fn prefix(&self) -> Prefix {
        Prefix(self.scratch.join("prefix"))
    }

    pub fn root(&self) -> PathBuf {
        self.scratch.join("root")
    }

    /// Starts the benchmark's program as process 1.
    pub fn initrd(&self) -> PathBuf {
        self.scratch.join("initrd.img")
    }

    pub fn kernel(&self) -> PathBuf {
        self.prefix().share().join("vmlinux")
    }

    /// `--root` of `kata-runtime`: on the file system of its default.
    pub fn state(&self) -> PathBuf {
        PathBuf::from(format!("/run/kata-bench-{}", std::process::id()))
    }

    /// A place of a name that nothing else has here.
    pub fn place(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Writes a bundle that runs the benchmark's program with `words` on the root, changed by `change`.
    pub fn bundle(
        &self,
        name: &str,
        words: &[&str],
        change: impl Fn(&mut Value),
    ) -> Result<PathBuf> {
        let bundle = self.place(name);
        fs::create_dir_all(&bundle).with_context(|| format!("make {}", bundle.display()))?;
        // Of an earlier round, which `spec` would not write over.
        match fs::remove_file(bundle.join("config.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("empty {}", bundle.display()));
            }
            _ => {}
        }
        Run::new(self.prefix().runtime())
            .args(["spec".as_ref(), "--bundle".as_ref(), bundle.as_os_str()])
            .quietly()
            .output()?;
        let file = bundle.join("config.json");
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let mut spec: Value = serde_json::from_slice(&text).context("understand config.json")?;
        let arguments: Vec<&str> = [PROGRAM].into_iter().chain(words.iter().copied()).collect();
        spec["process"]["args"] = json!(arguments);
        spec["process"]["terminal"] = json!(false);
        spec["root"] = json!({ "path": self.root(), "readonly": false });
        change(&mut spec);
        fs::write(&file, spec.to_string()).with_context(|| format!("write {}", file.display()))?;
        Ok(bundle)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        for directory in [&self.state(), &self.scratch] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    eprintln!("xtask: remove {}: {error}", directory.display());
                }
                _ => {}
            }
        }
    }
}
