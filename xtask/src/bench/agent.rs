//! What the agent has resident in a guest that does nothing.
//!
//! No container is in the agent's pid namespace, so the benchmark's program is the guest's first, leaves a child behind
//! that looks, and becomes the agent; the child tells the console, whose end is recorded when the VM is lost.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::container::{ID, await_status, kata};
use super::report::{Report, Target};
use super::sample::Sample;
use super::stand::{PROGRAM, Stand};
use crate::build::replace_file;

/// It has had some work, as one that is probed has.
const EXECS: usize = 10;

pub fn weigh(stand: &Stand, agent: &Path, report: &mut Report) -> Result<()> {
    let installed = stand.prefix().share().join("initrd.img");
    let kept = stand.place("initrd-of-the-agent.img");
    fs::rename(&installed, &kept).with_context(|| format!("move {}", installed.display()))?;
    let mut watched = stand.guest()?;
    let bytes = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
    watched.add_module("agent.ko", bytes)?;
    replace_file(&installed, 0o644, |out| Ok(watched.write_to(out)?))?;
    let console = console_of_a_guest(stand);
    fs::rename(&kept, &installed).with_context(|| format!("move {}", kept.display()))?;
    let sample = Sample::one(kibibytes(&console?)? * 1024.0 / 1e6);
    report.add_judged("agent: RSS in the guest", "MB", &sample, Target::AtMost(3.0));
    Ok(())
}

/// The end of its console, after a container and some more processes have run in it.
fn console_of_a_guest(stand: &Stand) -> Result<String> {
    let bundle = stand.bundle("watched", &["byte"], |_| ())?;
    let mut create = kata(stand);
    create.args(["create", "--bundle"]).arg(bundle).arg(ID);
    let mut create = create.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    // Held until the container is gone.
    let _input = create.stdin.take();
    let told = create.wait().context("create a container").and_then(|_| told_by(stand));
    kata(stand).args(["delete", "--force", ID]).status().context("delete the container")?;
    told
}

fn told_by(stand: &Stand) -> Result<String> {
    let succeed = |words: &[&str]| {
        let status = kata(stand).args(words).status().context("start kata-runtime")?;
        ensure!(status.success(), "kata-runtime {words:?} ended with {status}");
        Ok(())
    };
    succeed(&["start", ID])?;
    for _ in 0..EXECS {
        succeed(&["exec", ID, PROGRAM, "nothing"])?;
    }
    let running = await_status(stand, "running")?;
    let vmm =
        running["kata"]["vmmPid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    kill_process(vmm.context("the VMM has no pid")?, Signal::KILL).context("kill the VMM")?;
    let stopped = await_status(stand, "stopped")?;
    let console = stopped["kata"]["ended"]["console"].as_str();
    Ok(console.with_context(|| format!("no console in {stopped}"))?.to_owned())
}

/// The number of the last line that is whole.
fn kibibytes(console: &str) -> Result<f64> {
    let whole =
        |line: &str| line.trim().strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok();
    let number = console.lines().rev().find_map(whole);
    number.with_context(|| format!("no figure in {console:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_is_whole_counts() {
        let console = "[    1.0] up\r\nVmRSS:\t    1800 kB\r\nVmRSS:\t    1804 kB\r\nVmRSS:\t   18";
        assert_eq!(kibibytes(console).unwrap(), 1804.0);
        assert!(kibibytes("VmRSS:\t 1").is_err());
    }
}
