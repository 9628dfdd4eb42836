//! A sandbox of 128 MiB that does nothing: what its processes weigh on the host, what the agent weighs in the guest, and
//! how long one more process in it takes.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::bare::Prepared;
use super::container::{Container, Source};
use super::patience;
use super::report::{Report, Target};
use super::sample::Sample;
use super::stand::Stand;
use super::usage::Memory;
use super::vmm_line::VmmLine;

const EXECS: usize = 20;
/// All that a sandbox takes beside its containers, processes and guest; what a runtime class says of it.
pub const OVERHEAD: &str = "memory overhead of a sandbox";

const MEMORY: &str = "128";

/// Not there below an engine.
const CALLER: &str = "runtime";

/// What the issue counts together.
const COUNTED: [&str; 3] = ["shim", "proxy", "monitor"];

pub fn measure(stand: &Stand, line: &VmmLine, report: &mut Report) -> Result<()> {
    weigh_bare(stand, line, report)?;
    let bundle = stand.bundle("idle", &["byte"], |spec| {
        spec["annotations"] = json!({ "io.katacontainers.vm.memory_mib": MEMORY });
    })?;
    let container = Container::start(stand, Source::Bundle(&bundle))?;
    patience::read(&container.stdout, &mut [0], "the first byte of a container")?;
    weigh(&container, report)?;
    // The first one finds the program's pages cold.
    let times = (0..EXECS).map(|_| {
        let started = Instant::now();
        container.exec(&["nothing"])?;
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    });
    let times = times.collect::<Result<_>>()?;
    report.add("exec round trip", "ms", &Sample::new(times).context("no rounds")?);
    container.finish()
}

/// QEMU and a proxy of its own, of the same size.
fn weigh_bare(stand: &Stand, line: &VmmLine, report: &mut Report) -> Result<()> {
    let line = line.clone().with_task("byte").with_memory(MEMORY);
    let vm = Prepared::new(stand, &line)?.boot(stand)?;
    patience::read_line(&vm.console, "!")?;
    for (name, pid) in ["VMM", "proxy"].into_iter().zip(vm.pids()) {
        let memory = Memory::of(pid)?;
        report.add(format!("PSS, idle {MEMORY} MiB bare VM: {name}"), "MB", &megabytes(memory.own));
        if name == "VMM" {
            report.add("  guest memory in use, bare", "MB", &megabytes(memory.guest));
        }
    }
    Ok(())
}

fn megabytes(kibibytes: u64) -> Sample {
    Sample::one(kibibytes as f64 * 1024.0 / 1e6)
}

fn weigh(container: &Container<'_>, report: &mut Report) -> Result<()> {
    let (mut counted, mut guest, mut all) = (0, 0, 0);
    for (name, pid) in container.pids()?.named() {
        let memory = Memory::of(pid)?;
        guest += memory.guest;
        if name != CALLER {
            all += memory.own + memory.guest;
        }
        if COUNTED.contains(&name) {
            counted += memory.own;
        }
        report.add(format!("PSS, idle {MEMORY} MiB sandbox: {name}"), "MB", &megabytes(memory.own));
        report.add(format!("  of it anonymous: {name}"), "MB", &megabytes(memory.anonymous));
    }
    report.add("  guest memory in use", "MB", &megabytes(guest));
    report.add(OVERHEAD, "MB", &megabytes(all));
    let name = "PSS of shim, proxy and monitor";
    report.add_judged(name, "MB", &megabytes(counted), Target::AtMost(12.0));
    Ok(())
}
