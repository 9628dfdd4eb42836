//! Licences and sources of what we depend on, by cargo-deny, where it is installed.

use anyhow::Result;

use crate::layout::Workspace;
use crate::process::{Run, is_in_path};

/// Runs cargo-deny, or gives the reason why not. Advisories are left out: they need a network and change without a
/// commit of ours.
pub fn run(workspace: &Workspace) -> Result<Option<String>> {
    if !is_in_path("cargo-deny") {
        return Ok(Some(
            "cargo-deny is not installed (cargo install --locked cargo-deny)".to_owned(),
        ));
    }
    Run::new("cargo")
        .args(["deny", "--offline", "--workspace", "check", "bans", "licenses", "sources"])
        .cwd(workspace.root())
        .attached()?;
    Ok(None)
}
