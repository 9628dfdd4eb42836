//! Cold start: from the execution of `kata-runtime run` to the first byte of output, over a bare VM's from the execution
//! of QEMU. Bare, Kata and Kata with its steps logged take turns, so that a busy spell of the machine hits all.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::bare::Prepared;
use super::container::{Container, Source};
use super::first;
use super::patience;
use super::report::{Report, Target};
use super::sample::{Pair, Sample};
use super::stand::Stand;
use super::usage::cpu_time;
use super::vmm_line::VmmLine;

/// What ends each span of a traced start: a mark in `shim.log`.
const MARKS: &[(&str, &str)] = &[
    ("runtime has begun, shim is up", "step="),
    ("spec checked, cgroups and shared tree made", "step=SpawnProxy"),
    ("proxy spawned", "step=BootVmm"),
    ("VMM jailed and spawned, QMP answers", "step=AwaitAgent"),
    ("guest kernel and agent boot, hello arrives", "step=StartSandbox"),
];

/// One start.
#[derive(Debug, Default)]
struct Start {
    wall: Duration,
    /// Processor time of each process so far, by name.
    cpu: Vec<(&'static str, Duration)>,
}

impl Start {
    fn cpu_total(&self) -> Duration {
        self.cpu.iter().map(|(_, time)| *time).sum()
    }
}

/// Measures, and notes what came of it.
pub fn measure(stand: &Stand, line: &VmmLine, rounds: usize, report: &mut Report) -> Result<()> {
    let kernel = stand.place("first.elf");
    fs::write(&kernel, first::elf()).with_context(|| format!("write {}", kernel.display()))?;
    let first_line = line.clone().with_kernel(&kernel);
    let line = line.clone().with_task("byte");
    let (mut bare, mut kata, mut traced) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = Vec::new();
    for _ in 0..rounds {
        first.push(milliseconds(start_bare(stand, &first_line)?.wall));
        bare.push(start_bare(stand, &line)?);
        kata.push(start_kata(stand)?);
        traced.push(trace(stand)?);
    }
    let first = Sample::new(first).context("no rounds")?;
    report.add("first instruction of a kernel, from the execution of QEMU", "ms", &first);
    note_wall(&bare, &kata, report)?;
    note_cpu(&bare, &kata, report)?;
    for (number, (name, _)) in traced[0].iter().enumerate() {
        let spans = traced.iter().map(|spans| milliseconds(spans[number].1)).collect();
        let sample = Sample::new(spans).context("no rounds")?;
        report.add(format!("  step: {name}"), "ms", &sample);
    }
    Ok(())
}

fn note_wall(bare: &[Start], kata: &[Start], report: &mut Report) -> Result<()> {
    let figures = |starts: &[Start]| starts.iter().map(|start| milliseconds(start.wall)).collect();
    let pair = Pair { bare: figures(bare), kata: figures(kata), unit: "ms" };
    let names = ["cold start: bare", "cold start: kata-runtime run"];
    pair.note(names.map(str::to_owned), report)?;
    report.add_judged("cold start over bare", "x", &pair.ratio()?, Target::AtMost(1.5));
    Ok(())
}

fn note_cpu(bare: &[Start], kata: &[Start], report: &mut Report) -> Result<()> {
    let totals =
        |starts: &[Start]| starts.iter().map(|start| milliseconds(start.cpu_total())).collect();
    let pair = Pair { bare: totals(bare), kata: totals(kata), unit: "ms" };
    report.add("cold start over bare, processor time", "x", &pair.ratio()?);
    for (title, starts) in [("bare", bare), ("kata", kata)] {
        for (number, (process, _)) in starts[0].cpu.iter().enumerate() {
            let times = starts.iter().map(|start| milliseconds(start.cpu[number].1)).collect();
            let sample = Sample::new(times).context("no rounds")?;
            report.add(format!("  processor time, {title}: {process}"), "ms", &sample);
        }
    }
    Ok(())
}

fn start_bare(stand: &Stand, line: &VmmLine) -> Result<Start> {
    let vm = Prepared::new(stand, line)?.boot(stand)?;
    // Firmware and kernel have words of their own.
    patience::read_line(&vm.console, "!")?;
    let wall = vm.started.elapsed();
    let [vmm, proxy] = vm.pids();
    Ok(Start { wall, cpu: vec![("VMM", cpu_time(vmm)?), ("proxy", cpu_time(proxy)?)] })
}

fn start_kata(stand: &Stand) -> Result<Start> {
    let container = Container::start(stand, Source::Root(&["byte"]))?;
    let wall = first_byte(&container)?;
    let pids = container.pids()?.named();
    let times = pids.into_iter().map(|(name, pid)| Ok((name, cpu_time(pid)?)));
    let cpu = times.collect::<Result<_>>()?;
    container.finish()?;
    Ok(Start { wall, cpu })
}

fn first_byte(container: &Container<'_>) -> Result<Duration> {
    let mut byte = [0];
    patience::read(&container.stdout, &mut byte, "the first byte of a container")?;
    Ok(container.started.elapsed())
}

/// The spans of one start, by name.
fn trace(stand: &Stand) -> Result<Vec<(&'static str, Duration)>> {
    let container = Container::start(stand, Source::Traced(&["byte"]))?;
    let wall = first_byte(&container)?;
    // Asking for the state makes sure that the record of the start has been written.
    container.state()?;
    let log = read(&container.file("shim.log"))?;
    let record = container.file("state.json");
    let recorded = fs::metadata(&record)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("look at {}", record.display()))?;
    let mut spans = Vec::new();
    let mut before = Duration::ZERO;
    for (name, mark) in MARKS {
        let at = find(&log, mark, container.clock)?;
        spans.push((*name, at.saturating_sub(before)));
        before = at;
    }
    let answered = recorded.duration_since(container.clock).unwrap_or_default();
    spans.push((
        "container made and started, StartSandbox answered",
        answered.saturating_sub(before),
    ));
    spans.push(("first byte passed on", wall.saturating_sub(answered)));
    container.finish()?;
    Ok(spans)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// When the first line with `mark` was logged, counted from `clock`.
fn find(log: &str, mark: &str, clock: SystemTime) -> Result<Duration> {
    let line = log.lines().find(|line| line.contains(mark));
    let line = line.with_context(|| format!("no {mark:?} in the shim's log:\n{log}"))?;
    let time = time_of_day(line).with_context(|| format!("no time in {line:?}"))?;
    let since_epoch = clock.duration_since(SystemTime::UNIX_EPOCH).context("read the clock")?;
    const DAY: u64 = 86_400;
    let begun = since_epoch - Duration::from_secs(since_epoch.as_secs() / DAY * DAY);
    // A start around midnight.
    let time = if time < begun { time + Duration::from_secs(DAY) } else { time };
    Ok(time - begun)
}

/// From `2026-11-22T04:34:50.563675Z …`.
fn time_of_day(line: &str) -> Option<Duration> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Duration::try_from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds).ok()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::find;

    #[test]
    fn a_mark_is_counted_from_the_start_also_across_midnight() {
        let log = "2026-11-22T23:59:59.500000Z DEBUG step step=A\n2026-11-23T00:00:01.000000Z DEBUG step step=B\n";
        let clock = SystemTime::UNIX_EPOCH + Duration::from_millis(86_399_000);
        assert_eq!(find(log, "step=A", clock).unwrap().as_millis(), 500);
        assert_eq!(find(log, "step=B", clock).unwrap().as_millis(), 2000);
        assert!(find(log, "step=C", clock).is_err());
    }
}
