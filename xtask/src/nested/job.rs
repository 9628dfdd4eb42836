//! What is done in the nested host: programs, their files, their environment. `tests/nested-host` carries it out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::make_disk;
use crate::cache;

/// Where the job's disk is in the nested host.
pub const JOB: &str = "/job";
/// Beyond the deadlines of programs: from the execution of QEMU to the first program, and from the last one to the end.
const AROUND: Duration = Duration::from_secs(300);
/// Of the disk; what is not used of it takes no room.
const SIZE: &str = "4G";

/// A job.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Job {
    /// The environment of all programs.
    pub variables: BTreeMap<String, String>,
    /// Files of the host that are written before, with their text.
    pub files: BTreeMap<PathBuf, String>,
    /// What tells how slow the host is.
    pub calibration: Option<Calibration>,
    /// Run one after the other.
    pub programs: Vec<Program>,
    /// What is on the job's disk: files of ours, and their paths there.
    #[serde(skip)]
    pub staged: Vec<(PathBuf, PathBuf)>,
}

/// A program that is run before the others; a variable says to them how many times as long as nominal it took.
#[derive(Debug, Clone, Serialize)]
pub struct Calibration {
    pub program: Program,
    pub nominal_seconds: f64,
    pub variable: String,
}

/// One program.
#[derive(Debug, Clone, Serialize)]
pub struct Program {
    pub name: String,
    /// The program is the first.
    pub words: Vec<String>,
    /// It is killed after that.
    pub deadline_seconds: u64,
}

impl Job {
    /// Takes a file of ours along, and gives its path in the nested host.
    pub fn take(&mut self, file: impl Into<PathBuf>, to: impl AsRef<Path>) -> String {
        self.staged.push((file.into(), to.as_ref().to_owned()));
        Path::new(JOB).join(to).display().to_string()
    }

    /// For the whole of it, boot included.
    pub fn deadline(&self) -> Duration {
        let calibration = self.calibration.as_ref().map(|calibration| &calibration.program);
        let programs = self.programs.iter().chain(calibration);
        AROUND + Duration::from_secs(programs.map(|program| program.deadline_seconds).sum())
    }

    /// Makes the job's disk in a directory.
    pub fn write_disk(&self, directory: &Path) -> Result<PathBuf> {
        let tree = directory.join("job");
        cache::remove(&tree)?;
        for (from, to) in &self.staged {
            link(from, &tree.join(to))?;
        }
        let job = tree.join("job.json");
        let text = serde_json::to_vec_pretty(self).context("write the job")?;
        fs::create_dir_all(&tree).with_context(|| format!("make {}", tree.display()))?;
        fs::write(&job, text).with_context(|| format!("write {}", job.display()))?;
        let disk = directory.join("job.img");
        make_disk(&tree, &disk, SIZE)?;
        cache::remove(&tree)?;
        Ok(disk)
    }
}

/// By a hard link where that can be, as the files are only read.
fn link(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("take {} along", from.display());
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(context)?;
    }
    Ok(())
}
