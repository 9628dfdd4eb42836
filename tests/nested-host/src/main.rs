//! Process 1 of the nested host: a VM whose processor can virtualise, in which guests run under KVM on machines that have
//! none. `cargo xtask test --kvm` boots it and reads what it writes; docs/design has the note.
//!
//! ```text
//! initrd ─ boot: modules, disk, mounts ─► new root ─ spawn ─► runner: facilities, programs of the job, files
//!                                            └─ reaps whatever is orphaned; when the runner has ended: power off
//! ```
//!
//! Process 1 and the runner are the same program, twice: who waits for anybody can't also wait for somebody.

mod boot;
mod facility;
mod job;
mod pulse;
mod report;

use std::{
    env,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Pid, WaitOptions, getpid, wait},
    system::{RebootCommand, reboot},
};

use crate::{job::Job, report::Report};

/// The argument of the runner.
const RUNNER: &str = "runner";

fn main() -> ExitCode {
    let runner = env::args().nth(1).is_some_and(|argument| argument == RUNNER);
    let done = match (getpid().is_init(), runner) {
        (true, _) => be_init(),
        (false, true) => run_job(),
        (false, false) => {
            Err(anyhow::anyhow!("this is process 1 of a nested host, and nothing else"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nested host: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Boots, starts the runner, reaps, and switches the machine off, whatever happens.
fn be_init() -> Result<()> {
    if let Err(error) = boot_and_run() {
        eprintln!("nested host: {error:#}");
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("switch off")
}

fn boot_and_run() -> Result<()> {
    boot::enter_root().context("boot")?;
    let runner = Command::new("/proc/self/exe")
        .arg(RUNNER)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .spawn()
        .context("start the runner")?;
    let runner = Pid::from_child(&runner);
    loop {
        match wait(WaitOptions::empty()).context("reap")? {
            Some((pid, _)) if pid == runner => return Ok(()),
            _ => {}
        }
    }
}

fn run_job() -> Result<()> {
    let mut report = Report::open()?;
    pulse::start(report.clone())?;
    let done = facilities(&mut report).and_then(|()| Job::read()?.run(&mut report));
    if let Err(error) = &done {
        report.failure(&format!("{error:#}"))?;
    }
    report.kernel_log()?;
    report.end()?;
    done
}

fn facilities(report: &mut Report) -> Result<()> {
    let mut missing = Vec::new();
    for (name, found) in facility::look() {
        let found = found.map_err(|why| format!("{why:#}"));
        report.facility(name, found.as_ref().err())?;
        missing.extend(found.err().map(|_| name));
    }
    if !missing.is_empty() {
        bail!("the host lacks {}", missing.join(", "));
    }
    Ok(())
}
