//! Pod to pod: two containers, each in a namespace at one end of a pair of links; the one asks, the other one serves. Of Kata's
//! each is in a VM, of runc's none is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::super::patience;
use super::super::report::Report;
use super::super::sample::Sample;
use super::super::stand::{PROGRAM, Stand};
use super::scene::Scene;
use super::{Figures, carried, unit};

/// Those that are compared: Kata first.
const RUNTIMES: [&str; 2] = ["kata", "runc"];

/// A container of either; deleted when dropped.
struct Pod {
    program: PathBuf,
    root: PathBuf,
    id: String,
    child: Child,
}

impl Pod {
    /// Starts it, and waits until it serves.
    fn start(runtime: (&Path, &Path), bundle: &Path, name: &str) -> Result<Self> {
        let (program, root) = (runtime.0.to_owned(), runtime.1.to_owned());
        let id = format!("kb-{name}-{}", std::process::id());
        let mut command = Command::new(&program);
        command.arg("--root").arg(&root).args(["run", "--bundle"]).arg(bundle).arg(&id);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut pod = Self { program, root, id, child };
        let said = pod.child.stdout.as_mut().context("no pipe for the output")?;
        patience::read(said, &mut [0], "the word that it serves")?;
        Ok(pod)
    }

    /// What the benchmark's program says in it.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(["exec", &self.id, PROGRAM]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a process in a pod")?;
        let mut text = String::new();
        let mut output = child.stdout.take().context("no pipe for the output")?;
        output.read_to_string(&mut text).context("hear a process in a pod")?;
        let status = child.wait().context("wait for a process in a pod")?;
        if !status.success() {
            bail!("{words:?} in a pod ended with {status}");
        }
        Ok(text)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(["delete", "--force", &self.id]);
        if let Err(error) = command.status().and_then(|_| self.child.wait()) {
            eprintln!("xtask: delete a pod: {error}");
        }
    }
}

pub fn measure(stand: &Stand, rounds: usize, report: &mut Report) -> Result<()> {
    let mut all: [Vec<Figures>; 2] = Default::default();
    for _ in 0..rounds {
        for (runtime, figures) in RUNTIMES.into_iter().zip(&mut all) {
            let carried = one(stand, runtime);
            figures.push(carried.with_context(|| format!("measure pods of {runtime}"))?);
        }
    }
    let names = all[0].first().context("no rounds")?.keys();
    for name in names {
        let (unit, is_time) = unit(name);
        let [kata, runc] = all.each_ref().map(|rounds| -> Result<Vec<f64>> {
            let figures = rounds.iter().map(|round| round.get(name).copied());
            figures.collect::<Option<_>>().with_context(|| format!("no {name:?} of pods"))
        });
        let (kata, runc) = (kata?, runc?);
        let over = match is_time {
            true => Sample::ratios(&runc, &kata),
            false => Sample::ratios(&kata, &runc),
        };
        for (runtime, figures) in RUNTIMES.into_iter().zip([kata, runc]) {
            let sample = Sample::new(figures).context("no rounds")?;
            report.add(format!("pod to pod, {name}: {runtime}"), unit, &sample);
        }
        report.add(format!("pod to pod, {name} over runc's"), "x", &over.context("no rounds")?);
    }
    Ok(())
}

fn one(stand: &Stand, name: &str) -> Result<Figures> {
    let scene = Scene::new(stand, true)?;
    let (program, root) = match name {
        "kata" => (stand.prefix().runtime(), stand.state()),
        _ => ("runc".into(), stand.place("runc")),
    };
    let runtime = (program.as_path(), root.as_path());
    let served = stand.bundle("serving", &["serve"], |spec| scene.enter(spec))?;
    let asked = stand.bundle("asking", &["serve"], |spec| scene.enter_as_peer(spec))?;
    let _serves = Pod::start(runtime, &served, "serves")?;
    let asks = Pod::start(runtime, &asked, "asks")?;
    carried(|words| asks.ask(words))
}
