//! `make bench`: what is measured, and how it is shown, comes with the measurements themselves.

use anyhow::{Result, bail};

use crate::layout::Workspace;

/// Measures what `target/kata` holds.
pub fn run(workspace: &Workspace) -> Result<()> {
    bail!("nothing is measured yet; built programs are in {}", workspace.staged().0.display())
}
