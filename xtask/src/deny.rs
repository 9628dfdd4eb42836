//! Licences and sources of what we depend on, by cargo-deny, built into the cache.

use std::path::PathBuf;

use anyhow::Result;

use crate::cache;
use crate::layout::{TRIPLE, Workspace};
use crate::process::Run;
use crate::progress::Step;

const VERSION: &str = "0.20.2";

/// Builds cargo-deny once. Without a network that cannot be done; then [`run`] says that it was skipped.
pub fn prepare() -> Result<()> {
    let program = program()?;
    if program.is_file() {
        return Ok(());
    }
    let step = Step::begin(format!("build cargo-deny {VERSION}"));
    let tools = tools()?;
    // Unoptimised: it runs for a second, and is built for minutes otherwise.
    let built = Run::new("cargo")
        .args(["install", "--locked", "--debug", "--target", TRIPLE, "--version", VERSION])
        .args(["--root".as_ref(), tools.as_os_str(), "cargo-deny".as_ref()])
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .cwd(&cache::root()?)
        .logged(&cache::root()?.join("logs/cargo-deny.log"));
    match built {
        Ok(()) => step.end(program.display().to_string()),
        Err(error) => step.end(format!("not to be had: {error:#}")),
    }
    Ok(())
}

/// Runs cargo-deny, or gives the reason why not. Advisories are left out: they need a network and change without a
/// commit of ours.
pub fn run(workspace: &Workspace) -> Result<Option<String>> {
    let program = program()?;
    if !program.is_file() {
        return Ok(Some("cargo-deny is not in the cache; cargo xtask setup builds it".to_owned()));
    }
    Run::new(program)
        .args(["--offline", "--workspace", "check", "bans", "licenses", "sources"])
        .cwd(workspace.root())
        .attached()?;
    Ok(None)
}

fn tools() -> Result<PathBuf> {
    Ok(cache::root()?.join(format!("tools/cargo-deny-{VERSION}")))
}

fn program() -> Result<PathBuf> {
    Ok(tools()?.join("bin/cargo-deny"))
}
