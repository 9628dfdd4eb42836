//! The tiers of tests, each by what its environment guarantees; see CONTRIBUTING.md.

pub mod containerds;
mod dockers;
mod failures;
mod kvm;
mod later;
mod members;
pub mod roots;
mod skips;

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, Result};

use self::skips::Skips;
use crate::args::{Profile, TestOptions, TierName};
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::{Step, human};
use crate::setup::{self, Purpose};
use crate::{build, deny, lint};

const TIERS: &[TierName] = &[
    TierName::Lint,
    TierName::Unit,
    TierName::Component,
    TierName::Guest,
    TierName::Engines,
    TierName::Kvm,
];
const HYPERVISOR: &str = "kata-hypervisor";
/// Has a fake driver and real ones under one suite; it boots guests, so it runs in their tier.
const CONFORMANCE: &str = "conformance";
const GUEST_TESTS: &str = "kata-guest-tests";
const ENGINE_TESTS: &str = "kata-engine-tests";
/// Says to guest tests how many times as slow as nominal the machine is.
const SLOWNESS: &str = "KATA_TEST_SLOWNESS";
/// A run of nothing on a machine that is not slow; `tests/guest/src/pace.rs` has it too.
const NOMINAL_RUN_SECONDS: f64 = 1.5;

/// Runs the tiers in order; the first that fails ends it. The last line says how it went.
pub fn run(workspace: &Workspace, options: &TestOptions) -> Result<()> {
    let started = Instant::now();
    let chosen: Vec<TierName> = TIERS.iter().copied().filter(|tier| options.wants(*tier)).collect();
    let mut skips = Skips::default();
    for tier in &chosen {
        let step = Step::begin(format!("tier {}", name(*tier)));
        let outcome = match tier {
            TierName::Lint => lint(workspace, &mut skips),
            TierName::Unit => unit(workspace, &mut skips),
            TierName::Component => component(workspace, &mut skips),
            TierName::Guest => guest(workspace, options.full, &mut skips),
            TierName::Engines => engines(workspace, options.full, &mut skips),
            TierName::Kvm => kvm::run(workspace, options, &mut skips),
        };
        outcome.with_context(|| format!("tier {} failed", name(*tier)))?;
        step.end("passed");
    }
    skips.judge()?;
    let names: Vec<&str> = chosen.iter().copied().map(name).collect();
    println!(
        "\npassed: {}; {} skipped; {}",
        names.join(", "),
        skips.count(),
        human(started.elapsed())
    );
    Ok(())
}

impl TestOptions {
    fn wants(&self, tier: TierName) -> bool {
        match self.kvm {
            true => tier == TierName::Kvm,
            false => self.tiers.is_empty() || self.tiers.contains(&tier),
        }
    }
}

fn name(tier: TierName) -> &'static str {
    match tier {
        TierName::Lint => "lint",
        TierName::Unit => "unit",
        TierName::Component => "component",
        TierName::Guest => "guest",
        TierName::Engines => "engines",
        TierName::Kvm => "kvm",
    }
}

fn lint(workspace: &Workspace, skips: &mut Skips) -> Result<()> {
    setup::prepare(Purpose::Build)?;
    deny::prepare()?;
    if let Some(reason) = lint::run(workspace)? {
        skips.add(reason);
    }
    Ok(())
}

/// What is tested beside the code, in libraries and programs.
fn unit(workspace: &Workspace, skips: &mut Skips) -> Result<()> {
    setup::prepare(Purpose::Build)?;
    let mut selection = vec!["--workspace", "--lib", "--bins"];
    for member in &members::all(workspace)? {
        if member.name == GUEST_TESTS {
            selection.extend(["--exclude", GUEST_TESTS]);
        }
    }
    skips.watch(cargo_test(workspace, &selection))
}

/// Every test program that needs no guest.
fn component(workspace: &Workspace, skips: &mut Skips) -> Result<()> {
    let members = members::all(workspace)?;
    let mut selection = Vec::new();
    let boots = |name: &str| [GUEST_TESTS, ENGINE_TESTS].contains(&name);
    for member in members.iter().filter(|member| !boots(&member.name)) {
        let programs: Vec<&str> =
            member.test_programs().filter(|program| *program != CONFORMANCE).collect();
        if !programs.is_empty() {
            selection.extend(["-p", &member.name]);
        }
        selection.extend(programs.iter().flat_map(|program| ["--test", program]));
    }
    skips.watch(cargo_test(workspace, &selection))
}

/// What boots guests: the conformance suite of the hypervisor drivers, and the guest tests.
fn guest(workspace: &Workspace, full: bool, skips: &mut Skips) -> Result<()> {
    setup::prepare(Purpose::Everything)?;
    build::everything(workspace, Some(Profile::Lean))?;
    build::distro_guest(workspace)?;
    let variables = environment(workspace, full)?;
    let with_variables = |selection: &[&str]| {
        let tests = cargo_test(workspace, selection);
        variables.iter().fold(tests, |run, (name, value)| run.env(name, value))
    };
    skips.watch(with_variables(&["-p", HYPERVISOR, "--test", CONFORMANCE]))?;
    if members::all(workspace)?.iter().all(|member| member.name != GUEST_TESTS) {
        skips.add("there are no guest tests yet");
        return Ok(());
    }
    skips.watch(with_variables(&["-p", GUEST_TESTS]))
}

/// What runs below engines: a container of theirs is a guest of ours.
fn engines(workspace: &Workspace, full: bool, skips: &mut Skips) -> Result<()> {
    setup::prepare(Purpose::Engines)?;
    build::everything(workspace, Some(Profile::Lean))?;
    let tests = cargo_test(workspace, &["-p", ENGINE_TESTS]);
    let mut variables = environment(workspace, full)?;
    variables.push(("KATA_TEST_CONTAINERDS", containerds::later()?.into()));
    variables.push(("KATA_TEST_DOCKER", dockers::later()?.into()));
    skips.watch(variables.iter().fold(tests, |run, (name, value)| run.env(name, value)))
}

/// What tests that boot guests are told.
fn environment(workspace: &Workspace, full: bool) -> Result<Vec<(&'static str, OsString)>> {
    let prefix = workspace.staged();
    let mut variables: Vec<(&str, OsString)> = vec![
        ("KATA_PREFIX", prefix.0.clone().into()),
        ("KATA_TEST_KERNEL", prefix.share().join("vmlinux").into()),
        ("KATA_TEST_PROXY", prefix.program("kata-proxy").into()),
        ("KATA_TEST_ROOT_BUSYBOX", roots::busybox()?.into()),
        ("KATA_TEST_ROOT_DEBIAN", roots::debian()?.into()),
    ];
    if full {
        variables.push(("KATA_TEST_FULL", "1".into()));
    }
    Ok(variables)
}

/// `--show-output` shows what a test that passed has written: that is where it says SKIP.
fn cargo_test(workspace: &Workspace, selection: &[&str]) -> Run {
    Run::new("cargo")
        .args(["test", "--quiet", "--locked", "--no-fail-fast"])
        .args(selection)
        .args(["--", "--show-output"])
        .cwd(workspace.root())
}
