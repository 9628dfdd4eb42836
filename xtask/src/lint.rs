//! Formatting, clippy, tidy, licences: what needs a toolchain and nothing else.

use anyhow::Result;

use crate::layout::Workspace;
use crate::process::Run;
use crate::{deny, tidy};

/// All checks; the first that fails ends it. Gives the reason when one was skipped.
pub fn run(workspace: &Workspace) -> Result<Option<String>> {
    let cargo = |args: &[&str]| Run::new("cargo").args(args).cwd(workspace.root()).attached();
    tidy::run(workspace)?;
    cargo(&["fmt", "--all", "--", "--check"])?;
    cargo(&[
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    deny::run(workspace)
}
