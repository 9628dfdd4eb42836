//! The Helm chart: rendered, compared, and with its overhead measured.
//!
//! `deploy/helm/rendered/` holds what the chart makes of each of `deploy/helm/cases/`, under a hash of all that it was made of: so
//! that a chart that was changed and not rendered anew is found without Helm, and one that renders differently with it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::args::ChartOptions;
use crate::bench::OVERHEAD;
use crate::build::replace_file;
use crate::cache::Recipe;
use crate::layout::Workspace;
use crate::process::{Run, is_in_path};

const CHART: &str = "deploy/helm/kata";
const CASES: &str = "deploy/helm/cases";
/// Values that the schema must not let through.
const REFUSED: &str = "deploy/helm/refused";
const RENDERED: &str = "deploy/helm/rendered";
/// For who has no Helm: the runtime class of the default values.
const CLASS: &str = "deploy/runtimeclass.yaml";
const CLASS_CASE: &str = "containerd.yaml";
const HELM: &str = "helm";
const HEAD: &str = "# Written by cargo xtask chart, of sources ";

/// Of what was measured, for what differs from host to host.
const SLACK: f64 = 1.2;
const STEP_MIB: u32 = 16;

/// Renders all cases into the tree; before that, takes over what the bench has measured when asked to.
pub fn run(workspace: &Workspace, options: &ChartOptions) -> Result<()> {
    if options.measured {
        take_measured(workspace)?;
    }
    ensure!(is_in_path(HELM), "rendering needs {HELM} in PATH");
    for (path, text) in rendered(workspace)? {
        replace_file(&path, 0o644, |out| {
            use std::io::Write as _;
            out.write_all(text.as_bytes()).context("write what was rendered")
        })?;
        println!("    {}", path.display());
    }
    Ok(())
}

/// What is wrong with the renderings in the tree, and why they could be checked only in part, if so.
pub fn check(workspace: &Workspace) -> Result<(Vec<String>, Option<String>)> {
    let mut faults = Vec::new();
    for case in files(&workspace.root().join(CASES))? {
        let path = workspace.root().join(RENDERED).join(name(&case)?);
        let text = fs::read_to_string(&path).unwrap_or_default();
        if !text.starts_with(&format!("{HEAD}{}\n", recipe(workspace, &case)?)) {
            faults.push(format!("{} is out of date: cargo xtask chart", path.display()));
        }
    }
    if !faults.is_empty() {
        return Ok((faults, None));
    }
    if !is_in_path(HELM) {
        return Ok((faults, Some(format!("no {HELM} in PATH: the chart is not rendered"))));
    }
    for (path, text) in rendered(workspace)? {
        if fs::read_to_string(&path).unwrap_or_default() != text {
            faults.push(format!("{} is not what the chart renders", path.display()));
        }
    }
    for values in files(&workspace.root().join(REFUSED))? {
        if template(workspace, &values).is_ok() {
            faults.push(format!("the schema lets {} through", values.display()));
        }
    }
    Ok((faults, None))
}

/// Every file that is to be, with its text.
fn rendered(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for case in files(&workspace.root().join(CASES))? {
        let head = format!("{HEAD}{}\n", recipe(workspace, &case)?);
        let documents = documents(&template(workspace, &case)?);
        let text = head.clone() + &documents.concat();
        all.push((workspace.root().join(RENDERED).join(name(&case)?), text));
        if name(&case)? == CLASS_CASE {
            let class = documents.into_iter().find(|document| document.contains("RuntimeClass"));
            let class = class.context("the default values make no runtime class")?;
            all.push((workspace.root().join(CLASS), head + &plain(&class)));
        }
    }
    Ok(all)
}

fn template(workspace: &Workspace, values: &Path) -> Result<String> {
    Run::new(HELM)
        .args(["template", "kata", CHART, "--namespace", "kube-system", "--values"])
        .args([values])
        .cwd(workspace.root())
        .quietly()
        .output()
        .with_context(|| format!("render {}", values.display()))
}

/// Helm's output by documents, in the order of their templates: Helm sorts by kind, which differs with its version.
fn documents(text: &str) -> Vec<String> {
    let documents = text.split("---\n").map(str::trim).filter(|document| !document.is_empty());
    let mut documents: Vec<String> =
        documents.map(|document| format!("---\n{document}\n")).collect();
    documents.sort();
    documents
}

/// A document without what it says of Helm.
fn plain(document: &str) -> String {
    let is_helms = |line: &&str| {
        !line.contains("app.kubernetes.io/") && !line.starts_with("# Source") && *line != "---"
    };
    let lines = document.lines().filter(is_helms).filter(|line| *line != "  labels:");
    lines.map(|line| format!("{line}\n")).collect()
}

/// What a rendering is made of.
fn recipe(workspace: &Workspace, case: &Path) -> Result<String> {
    let chart = workspace.root().join(CHART);
    let mut recipe = Recipe::new("chart");
    for path in [files(&chart)?, files(&chart.join("templates"))?, vec![case.to_owned()]].concat() {
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        recipe = recipe.part(name(&path)?, text);
    }
    Ok(recipe.hash())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn name(path: &Path) -> Result<&str> {
    path.file_name().and_then(OsStr::to_str).with_context(|| format!("name {}", path.display()))
}

/// Puts the memory that `cargo xtask bench --only idle` has measured into the chart's values.
fn take_measured(workspace: &Workspace) -> Result<()> {
    let file = workspace.staged().0.join("bench.json");
    let text = fs::read(&file).with_context(|| format!("read {}: bench first", file.display()))?;
    let report: Value = serde_json::from_slice(&text)?;
    let figures = report["figures"].as_array().context("a report without figures")?;
    let figure = figures.iter().find(|figure| figure["name"] == OVERHEAD);
    let measured = figure.and_then(|figure| figure["median"].as_f64());
    let memory = with_slack(measured.context("bench --only idle has not been run")?);
    let path = workspace.root().join(CHART).join("values.yaml");
    let values = fs::read_to_string(&path)?;
    let (before, rest) = values.split_once("\n  memory: ").context("no memory in the values")?;
    let Some((_, after)) = rest.split_once('\n') else { bail!("the values end with the memory") };
    fs::write(&path, format!("{before}\n  memory: {memory}Mi\n{after}"))?;
    println!("    overhead of a sandbox: {memory} MiB");
    Ok(())
}

/// MiB for a number of MB that was measured.
fn with_slack(megabytes: f64) -> u32 {
    let mib = megabytes * 1e6 / f64::from(1 << 20) * SLACK;
    // Of a size that was measured, far below what the type holds.
    (mib / f64::from(STEP_MIB)).ceil() as u32 * STEP_MIB
}

#[cfg(test)]
mod tests {
    use super::{documents, plain, with_slack};

    #[test]
    fn documents_are_in_the_order_of_their_templates() {
        let text = "---\n# Source: kata/templates/b.yaml\nx: 1\n---\n# Source: kata/templates/a.yaml\n\ny: 2\n\n";
        let sorted = documents(text);
        assert!(sorted[0].contains("a.yaml") && sorted[0].ends_with("y: 2\n"), "{sorted:?}");
        assert_eq!(sorted.len(), 2);
    }

    #[test]
    fn a_plain_document_says_nothing_of_helm() {
        let text = "---\n# Source: x\nkind: X\nmetadata:\n  labels:\n    app.kubernetes.io/name: kata\nhandler: kata\n";
        assert_eq!(plain(text), "kind: X\nmetadata:\nhandler: kata\n");
    }

    #[test]
    fn an_overhead_is_rounded_up() {
        assert_eq!(with_slack(100.0), 128);
        assert_eq!(with_slack(147.0), 176);
    }
}
