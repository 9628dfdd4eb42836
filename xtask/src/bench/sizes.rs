//! Sizes of what is installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::report::{Report, Target};
use super::sample::Sample;
use crate::layout::{FILES, Workspace};

pub fn measure(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let agent = workspace.built().join("kata-agent");
    let size = megabytes(&agent)?;
    report.add_judged("size: kata-agent, static", "MB", &size, Target::AtMost(3.0));
    for (file, _) in FILES {
        let name = file.rsplit('/').next().unwrap_or(file);
        report.add(format!("size: {name}"), "MB", &megabytes(&workspace.staged().0.join(file))?);
    }
    Ok(())
}

fn megabytes(path: &Path) -> Result<Sample> {
    let metadata = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    Ok(Sample::one(metadata.len() as f64 / 1e6))
}
