//! The tiers of tests, each by what its environment guarantees; see CONTRIBUTING.md.

pub mod roots;
mod skips;

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::skips::Skips;
use crate::args::{Profile, TestOptions, TierName};
use crate::layout::Workspace;
use crate::process::{Run, is_in_path};
use crate::progress::{Step, human};
use crate::setup::{self, Purpose};
use crate::{build, deny, lint};

const TIERS: &[TierName] = &[TierName::Lint, TierName::Unit, TierName::Component, TierName::Guest];
const COMPONENT_TESTS: &str = "kata-component-tests";
const GUEST_TESTS: &str = "kata-guest-tests";

/// Runs the tiers in order; the first that fails ends it. The last line says how it went.
pub fn run(workspace: &Workspace, options: &TestOptions) -> Result<()> {
    let started = Instant::now();
    let chosen: Vec<TierName> = TIERS
        .iter()
        .copied()
        .filter(|tier| options.tiers.is_empty() || options.tiers.contains(tier))
        .collect();
    let mut skips = Skips::default();
    for tier in &chosen {
        let step = Step::begin(format!("tier {}", name(*tier)));
        let outcome = match tier {
            TierName::Lint => lint(workspace, &mut skips),
            TierName::Unit => unit(workspace),
            TierName::Component => component(workspace, &mut skips),
            TierName::Guest => guest(workspace, options.full, &mut skips),
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

fn name(tier: TierName) -> &'static str {
    match tier {
        TierName::Lint => "lint",
        TierName::Unit => "unit",
        TierName::Component => "component",
        TierName::Guest => "guest",
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

fn unit(workspace: &Workspace) -> Result<()> {
    setup::prepare(Purpose::Build)?;
    let runner: &[&str] = if is_in_path("cargo-nextest") {
        &["nextest", "run", "--no-tests", "pass", "--status-level", "fail"]
    } else {
        &["test", "--quiet"]
    };
    let scope = ["--locked", "--workspace", "--exclude", COMPONENT_TESTS, "--exclude", GUEST_TESTS];
    let cargo = Run::new("cargo").args(runner).args(scope).cwd(workspace.root());
    cargo.attached()
}

fn component(workspace: &Workspace, skips: &mut Skips) -> Result<()> {
    if !is_member(workspace, COMPONENT_TESTS)? {
        skips.add("there are no component tests yet");
        return Ok(());
    }
    skips.watch(cargo_test(workspace, COMPONENT_TESTS))
}

fn guest(workspace: &Workspace, full: bool, skips: &mut Skips) -> Result<()> {
    if !is_member(workspace, GUEST_TESTS)? {
        skips.add("there are no guest tests yet");
        return Ok(());
    }
    setup::prepare(Purpose::Everything)?;
    build::everything(workspace, Some(Profile::Lean))?;
    build::distro_guest(workspace)?;
    let mut variables: Vec<(&str, OsString)> = vec![
        ("KATA_PREFIX", workspace.staged().0.into()),
        ("KATA_TEST_ROOT_BUSYBOX", roots::busybox()?.into()),
        ("KATA_TEST_ROOT_DEBIAN", roots::debian()?.into()),
    ];
    if full {
        variables.push(("KATA_TEST_FULL", "1".into()));
    }
    let tests = variables
        .into_iter()
        .fold(cargo_test(workspace, GUEST_TESTS), |run, (name, value)| run.env(name, value));
    skips.watch(tests)
}

/// `--show-output` shows what a test that passed has written: that is where it says SKIP.
fn cargo_test(workspace: &Workspace, package: &str) -> Run {
    Run::new("cargo")
        .args(["test", "--locked", "--no-fail-fast", "-p", package, "--", "--show-output"])
        .cwd(workspace.root())
}

fn is_member(workspace: &Workspace, package: &str) -> Result<bool> {
    let query = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let text = Run::new("cargo").args(query).cwd(workspace.root()).quietly().output()?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("read what cargo metadata says")?;
    let Some(packages) = metadata["packages"].as_array() else {
        bail!("cargo metadata lists no packages");
    };
    Ok(packages.iter().any(|found| found["name"] == package))
}
