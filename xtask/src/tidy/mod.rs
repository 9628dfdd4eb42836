//! What clippy cannot check: sizes, layers, names, documents. Each finding names the file, the line and the rule.

mod code;
mod crates;
mod documents;
mod files;
mod source;

use anyhow::{Result, bail};

use crate::chart;
use crate::layout::Workspace;
use crate::progress::Step;

/// What the checks found.
#[derive(Debug, Default)]
pub struct Findings {
    failures: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn fail(&mut self, finding: impl Into<String>) {
        self.failures.push(finding.into());
    }

    fn warn(&mut self, finding: impl Into<String>) {
        self.warnings.push(finding.into());
    }
}

/// Checks the whole tree and shows everything that is wrong with it, not only the first.
pub fn run(workspace: &Workspace) -> Result<()> {
    let step = Step::begin("tidy");
    let files = files::tracked(workspace)?;
    let mut findings = Findings::default();
    crates::check(workspace, &mut findings)?;
    documents::check(workspace, &files, &mut findings)?;
    source::check(&files, &mut findings);
    let (faults, skipped) = chart::check(workspace)?;
    faults.into_iter().for_each(|fault| findings.fail(fault));
    if let Some(reason) = skipped {
        println!("    {reason}");
    }
    for warning in &findings.warnings {
        println!("    warning: {warning}");
    }
    for failure in &findings.failures {
        println!("    {failure}");
    }
    if !findings.failures.is_empty() {
        bail!("tidy found {} faults", findings.failures.len());
    }
    step.end(format!("{} files, {} warnings", files.len(), findings.warnings.len()));
    Ok(())
}
