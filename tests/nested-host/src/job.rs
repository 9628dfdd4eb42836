//! The job: programs of the job's disk that are run one after the other, whatever became of those before.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::Deserialize;

use crate::{
    boot::JOB,
    report::{End, Report},
};

/// What is in it is handed out when all programs have ended.
const OUT: &str = "/out";

/// `job.json` on the job's disk; `xtask/src/nested/job.rs` writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The environment of all programs.
    variables: BTreeMap<String, String>,
    /// Files of the host to be written before: path and text.
    files: BTreeMap<PathBuf, String>,
    calibration: Option<Calibration>,
    programs: Vec<Program>,
}

/// A program whose time tells how slow this host is; a variable tells it to the others, as a factor that is 1 at least.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibration {
    program: Program,
    nominal_seconds: f64,
    variable: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    /// The program is the first.
    words: Vec<String>,
    deadline_seconds: u64,
}

impl Job {
    pub fn read() -> Result<Self> {
        let path = Path::new(JOB).join("job.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).context("understand the job")
    }

    pub fn run(mut self, report: &mut Report) -> Result<()> {
        fs::create_dir_all(OUT).context("make the place for results")?;
        for (path, text) in &self.files {
            let context = || format!("write {}", path.display());
            fs::create_dir_all(path.parent().with_context(context)?).with_context(context)?;
            fs::write(path, text).with_context(context)?;
        }
        if let Some(calibration) = self.calibration.take() {
            let seconds = self.perform(&calibration.program, report)?;
            let factor = (seconds / calibration.nominal_seconds).max(1.0);
            self.variables.insert(calibration.variable, factor.to_string());
        }
        for program in &self.programs {
            self.perform(program, report)?;
        }
        report.files(Path::new(OUT), "")
    }

    /// Runs a program, reports how it ended, and gives the seconds that it took.
    fn perform(&self, program: &Program, report: &mut Report) -> Result<f64> {
        let started = Instant::now();
        let end = self.end_of(program, report)?;
        let seconds = started.elapsed().as_secs_f64();
        report.program(&program.name, (end, seconds))?;
        Ok(seconds)
    }

    fn end_of(&self, program: &Program, report: &Report) -> Result<End> {
        let context = || format!("start {:?}", program.words);
        let (first, rest) = program.words.split_first().with_context(context)?;
        let mut child = Command::new(first)
            .args(rest)
            .envs(&self.variables)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(report.log()?)
            .stderr(report.log()?)
            .process_group(0)
            .spawn()
            .with_context(context)?;
        let deadline = Duration::from_secs(program.deadline_seconds);
        if !ends_within(&child, deadline)? {
            kill_process_group(Pid::from_child(&child), Signal::KILL)
                .context("kill a program that does not end")?;
            child.wait().context("wait for a program that was killed")?;
            return Ok(End::Deadline);
        }
        let status = child.wait().context("wait for a program")?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => End::Code(code),
            (None, signal) => End::Signal(signal.unwrap_or_default()),
        })
    }
}

fn ends_within(child: &Child, deadline: Duration) -> Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("open a pidfd")?;
    let timeout = Timespec::try_from(deadline).context("convert a deadline")?;
    let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&timeout)));
    Ok(ready.context("wait for a program")? > 0)
}
