//! The same measurements under KVM, in the nested host: this very program runs there, on what was built here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::args::Measurement;
use crate::layout::{FILES, Workspace};
use crate::nested::{self, JOB, Job, Program};

/// A tree as this program expects it, on the job's disk.
const TREE: &str = "tree";
const CONFIGURATION: &str = "[hypervisor]\naccelerator = \"kvm\"\n\n[boot]\ntimeout_kvm_s = 180\n";
const DEADLINE_SECONDS: u64 = 1500;
/// What is measured there when nothing is named: the rest is the same without KVM.
const USUAL: &[Measurement] = &[Measurement::Cold, Measurement::Idle];

/// Runs it there, shows what it says, and keeps its figures in `target/kata/bench-kvm.json`.
pub fn run(workspace: &Workspace, guest: &Path, only: &[Measurement]) -> Result<()> {
    let mut job = Job::default();
    job.files.insert("/etc/kata/config.toml".into(), CONFIGURATION.to_owned());
    job.variables.insert("CARGO_MANIFEST_DIR".to_owned(), format!("{JOB}/{TREE}/xtask"));
    let tree = Path::new(TREE);
    job.take(workspace.root().join("Cargo.lock"), tree.join("Cargo.lock"));
    for (name, _) in FILES {
        job.take(workspace.staged().0.join(name), tree.join("target/kata").join(name));
    }
    // The agent is weighed by itself, too.
    for built in [guest, &workspace.built().join("kata-agent")] {
        let below = built.strip_prefix(workspace.target()).context("place a program")?;
        job.take(built, tree.join("target").join(below));
    }
    let own = std::env::current_exe().context("find this program")?;
    let own = job.take(own, "xtask");
    let figures = format!("{JOB}/{TREE}/target/kata/bench.json");
    let chosen = if only.is_empty() { USUAL } else { only };
    let chosen: String = chosen.iter().map(|one| format!(" --only {}", one.word())).collect();
    let script = format!("{own} bench --prebuilt --rounds 5{chosen} && cp {figures} /out/");
    job.programs.push(Program {
        name: "bench".to_owned(),
        words: ["/bin/sh", "-c", &script].map(str::to_owned).into(),
        deadline_seconds: DEADLINE_SECONDS,
    });
    let outcome = nested::run(workspace, job, |line| println!("{line}"))?;
    let ended = outcome.programs.last().context("nothing was measured")?;
    ensure!(ended.code == 0, "measuring ended with code {}: {}", ended.code, ended.cause);
    let to = workspace.staged().0.join("bench-kvm.json");
    fs::copy(outcome.files.join("bench.json"), &to)
        .with_context(|| format!("keep {}", to.display()))?;
    println!("written to {}", to.display());
    Ok(())
}
