//! `make bench`: speed, sizes and memory of what `target/kata` holds, each over something that the same machine does in
//! the same minutes. Absolute figures depend on the machine; ratios and processor time are what to compare.

mod agent;
mod bare;
mod cold;
mod container;
mod files;
mod first;
mod idle;
mod nested;
mod network;
mod patience;
mod pods;
mod report;
mod sample;
mod sizes;
mod stand;
mod throughput;
mod usage;
mod vmm_line;

use std::fs;
use std::io::Write;
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use self::container::{Container, Source};
use self::report::Report;
use self::stand::Stand;
use self::vmm_line::VmmLine;
use crate::args::{BenchOptions, Measurement};
use crate::build::{self, replace_file};
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};

pub use self::idle::OVERHEAD;

/// A round has some hundred figures.
const NETWORK_ROUNDS: usize = 3;

const GUEST_PACKAGE: &str = "kata-bench-guest";

/// Builds, measures, prints the table and writes `target/kata/bench.json`; everything, unless options name some.
pub fn run(workspace: &Workspace, options: &BenchOptions) -> Result<()> {
    setup::prepare(Purpose::Bench)?;
    let guest = workspace.built().join(GUEST_PACKAGE);
    if !options.prebuilt {
        build::everything(workspace, None)?;
        build_guest(workspace)?;
    }
    if options.kvm {
        return nested::run(workspace, &guest, &options.only);
    }
    let built_agent = workspace.built().join("kata-agent");
    let only = &options.only;
    let stand = Stand::new(workspace, &guest)?;
    let mut report = Report::default();
    let line = look_at_vmm(&stand, &mut report)?;
    for (measurement, what) in MEASUREMENTS {
        if !only.is_empty() && !only.contains(measurement) {
            continue;
        }
        let step = Step::begin(format!("measure {what}"));
        let measured = match measurement {
            Measurement::Cold => cold::measure(&stand, &line, options.rounds.max(1), &mut report),
            Measurement::Files => files::measure(&stand, &line, &mut report),
            Measurement::Streams => throughput::measure(&stand, &line, &mut report),
            Measurement::Idle => idle::measure(&stand, &line, &mut report)
                .and_then(|()| agent::weigh(&stand, &built_agent, &mut report)),
            Measurement::Pods => {
                pods::measure((workspace, &stand), &line, options.rounds.max(1), &mut report)
            }
            Measurement::Network => {
                network::measure(&stand, options.rounds.min(NETWORK_ROUNDS), &mut report)
            }
            Measurement::Sizes => sizes::measure(workspace, &mut report),
        };
        measured.with_context(|| format!("measure {what}"))?;
        step.end("done");
    }
    let file = workspace.staged().0.join("bench.json");
    let json = report.json()?;
    replace_file(&file, 0o644, |out| out.write_all(&json).context("write the figures"))?;
    println!("\n{}\nwritten to {}", report.table(), file.display());
    Ok(())
}

const MEASUREMENTS: &[(Measurement, &str)] = &[
    (Measurement::Cold, "cold start"),
    (Measurement::Files, "small files"),
    (Measurement::Streams, "standard streams"),
    (Measurement::Idle, "an idle sandbox"),
    (Measurement::Pods, "pods by CRI"),
    (Measurement::Network, "the network"),
    (Measurement::Sizes, "sizes"),
];

fn build_guest(workspace: &Workspace) -> Result<()> {
    Run::new("cargo")
        .args(["build", "--quiet", "--locked", "--release", "-p", GUEST_PACKAGE])
        .cwd(workspace.root())
        .attached()
}

/// Runs one container, to see which VMM it gets.
fn look_at_vmm(stand: &Stand, report: &mut Report) -> Result<VmmLine> {
    let container = Container::start(stand, Source::Root(&["byte"]))?;
    patience::read(&container.stdout, &mut [0], "the first byte of a container")?;
    let state = container.state()?;
    for name in ["machine", "accelerator", "memory", "vcpus"] {
        let value = state["kata"][name].as_str().unwrap_or("unknown");
        report.condition(name, value);
    }
    let processors = available_parallelism().context("count the processors")?;
    report.condition("processors of the host", processors.to_string());
    report.condition("load", fs::read_to_string("/proc/loadavg").context("read the load")?.trim());
    let line = container.vmm_line()?;
    container.finish()?;
    Ok(line)
}
