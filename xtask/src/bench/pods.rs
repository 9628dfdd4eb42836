//! Pods by CRI, over runc's of the same containerd and over a bare VM; probes, over what they are made of; memory of one
//! pod and of ten. The client is a program beside the tests of engines, which does one thing at a word: so its rounds and
//! bare VMs take turns.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::bare::{BareVm, Prepared};
use super::patience;
use super::report::{Report, Target};
use super::sample::Sample;
use super::stand::Stand;
use super::usage::Memory;
use super::vmm_line::VmmLine;
use crate::layout::Workspace;
use crate::process::Run;
use crate::setup::{self, Purpose};
use crate::test::roots;

const PACKAGE: &str = "kata-engine-tests";
const PROGRAM: &str = "kata-bench-pods";

/// A port that the proxy accepts and that no agent is there to use.
const PORT: u32 = 1025;

/// Bytes that go to a guest and come back, one after the other.
const ECHOES: usize = 200;

/// How many pods are weighed.
const COUNTS: [usize; 2] = [1, 10];

/// Figures of one round, by name.
type Round = BTreeMap<String, f64>;

pub fn measure(
    (workspace, stand): (&Workspace, &Stand),
    line: &VmmLine,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    setup::prepare(Purpose::Engines)?;
    let build = ["build", "--quiet", "--locked", "-p", PACKAGE, "--bin", PROGRAM];
    Run::new("cargo").args(build).cwd(workspace.root()).attached()?;
    let mut client = Client::start(&workspace.built_for_tests().join(PROGRAM), stand)?;
    let byte = line.clone().with_task("byte");
    let echo = line.clone().with_task(&format!("echo,{PORT}"));
    let mut measured: Vec<Round> = Vec::new();
    for _ in 0..rounds {
        let mut round: Round = client.ask("round")?;
        let vm = boot(stand, &byte)?;
        patience::read_line(&vm.console, "!")?;
        round.insert("bare: start".into(), vm.started.elapsed().as_secs_f64() * 1000.0);
        drop(vm);
        round.insert("bare: echo".into(), echoes(&boot(stand, &echo)?)?);
        measured.push(round);
    }
    note(&measured, report)?;
    for count in COUNTS {
        weigh(&mut client, count, report)?;
    }
    client.finish()
}

fn boot(stand: &Stand, line: &VmmLine) -> Result<BareVm> {
    Prepared::new(stand, line)?.boot(stand)
}

/// Milliseconds that a byte takes to the guest and back: the median.
fn echoes(vm: &BareVm) -> Result<f64> {
    let connection = vm.connection()?;
    let mut times = Vec::new();
    for _ in 0..ECHOES {
        let started = Instant::now();
        (&connection).write_all(b"e").context("write to the guest")?;
        patience::read(&connection, &mut [0], "an echo")?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Sample::new(times).context("no echoes")?.median())
}

fn note(rounds: &[Round], report: &mut Report) -> Result<()> {
    let of = |name: &str| -> Result<Vec<f64>> {
        let figures = rounds.iter().map(|round| round.get(name).copied());
        figures.collect::<Option<_>>().with_context(|| format!("no figure {name:?}"))
    };
    let names = rounds.first().into_iter().flat_map(|round| round.keys());
    for name in names {
        let sample = Sample::new(of(name)?).context("no rounds")?;
        report.add(format!("pod, {name}"), "ms", &sample);
    }
    let ratio = |one: &str, other: &str| -> Result<Sample> {
        Sample::ratios(&of(one)?, &of(other)?).context("no rounds")
    };
    report.add("pod start over runc's", "x", &ratio("kata: start", "runc: start")?);
    report.add("pod start over bare", "x", &ratio("kata: start", "bare: start")?);
    report.add("exec by CRI over runc's", "x", &ratio("kata: exec", "runc: exec")?);
    let work = |what: &str| format!("kata: {what}, processor time of the VMM");
    let ratio_of_work = ratio(&work("probe"), &work("program"))?;
    report.add("probe over program, processor time of the VMM", "x", &ratio_of_work);
    let (echo, promised) = (of("bare: echo")?, Target::AtMost(1.5));
    for (title, probe, program) in [
        ("probe over echo and program", "kata: probe", "kata: program"),
        ("ten probes at once over echo and ten programs", "kata: ten probes", "kata: ten programs"),
    ] {
        let parts: Vec<f64> = of(program)?.iter().zip(&echo).map(|(one, two)| one + two).collect();
        let sample = Sample::ratios(&of(probe)?, &parts).context("no rounds")?;
        report.add_judged(title, "x", &sample, promised);
    }
    Ok(())
}

/// So many pods at once: what each takes.
fn weigh(client: &mut Client, count: usize, report: &mut Report) -> Result<()> {
    let processes: BTreeMap<String, Vec<u32>> = client.ask(&format!("pods {count}"))?;
    let pods = if count == 1 { "1 pod".into() } else { format!("{count} pods") };
    let (mut all, mut private) = (0, Vec::new());
    for (name, pids) in &processes {
        let memory: Vec<Memory> = pids.iter().map(|pid| Memory::of(*pid)).collect::<Result<_>>()?;
        let own: u64 = memory.iter().map(|one| one.own).sum();
        let whole: u64 = memory.iter().map(|one| one.own + one.guest).sum();
        all += whole;
        let title = format!("PSS of each of {pods}: {name}");
        report.add(title, "MB", &Sample::one(megabytes(own) / count as f64));
        if name == "shim" {
            private = memory.iter().map(|one| megabytes(one.private)).collect();
        }
    }
    let title = format!("PSS of each of {pods}: all, guest memory in use with it");
    report.add(title, "MB", &Sample::one(megabytes(all) / count as f64));
    if private.len() != count {
        bail!("{} shims of {count} pods: {processes:?}", private.len());
    }
    let private = Sample::new(private).context("no shims")?;
    let title = format!("private memory of a shim, {pods}");
    // Of a single one the program's own pages are private too.
    match count {
        1 => report.add(title, "MB", &private),
        _ => report.add_judged(title, "MB", &private, Target::AtMost(5.0)),
    }
    Ok(())
}

fn megabytes(kibibytes: u64) -> f64 {
    kibibytes as f64 * 1024.0 / 1e6
}

/// The program that speaks CRI; it ends with its input.
struct Client {
    child: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(program: &Path, stand: &Stand) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .env("KATA_PREFIX", stand.prefix().0)
            .env("KATA_TEST_ROOT_BUSYBOX", roots::busybox()?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let words = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no pipe for answers")?);
        Ok(Self { child, words, answers })
    }

    fn ask<T: DeserializeOwned>(&mut self, word: &str) -> Result<T> {
        let words = self.words.as_mut().context("the input is closed")?;
        writeln!(words, "{word}").context("say a word to the client")?;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line).context("read an answer")? == 0 {
                bail!("the client ended at {word:?}");
            }
            // Beside answers it may say what it clears away of others.
            if line.starts_with('{') {
                return serde_json::from_str(&line).context("understand an answer");
            }
        }
    }

    fn finish(mut self) -> Result<()> {
        drop(self.words.take());
        let status = self.child.wait().context("wait for the client")?;
        if !status.success() {
            bail!("the client ended with {status}");
        }
        Ok(())
    }
}

/// After a measurement that failed half-way the engine goes all the same.
impl Drop for Client {
    fn drop(&mut self) {
        drop(self.words.take());
        self.child.wait().ok();
    }
}
