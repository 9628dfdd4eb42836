//! Which members of the workspace have tests of their own beside their sources.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::layout::Workspace;
use crate::process::Run;

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Member>,
}

/// A crate of the tree.
#[derive(Debug, Deserialize)]
pub struct Member {
    pub name: String,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// All crates of the tree.
pub fn all(workspace: &Workspace) -> Result<Vec<Member>> {
    let query = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let text = Run::new("cargo").args(query).cwd(workspace.root()).quietly().output()?;
    let metadata: Metadata =
        serde_json::from_str(&text).context("read what cargo metadata says")?;
    Ok(metadata.packages)
}

impl Member {
    /// The names of its test programs: what is in its `tests/`.
    pub fn test_programs(&self) -> impl Iterator<Item = &str> {
        let programs = self.targets.iter().filter(|target| target.kind.iter().any(|k| k == "test"));
        programs.map(|target| target.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_libraries() {
        let text = r#"{"packages":[{"name":"kata-config","targets":[
            {"name":"kata_config","kind":["lib"]},{"name":"reading","kind":["test"]}]}]}"#;
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        assert_eq!(metadata.packages[0].test_programs().collect::<Vec<_>>(), ["reading"]);
    }
}
