//! Rules for crates: who may use whom, licences, lints.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Findings;
use crate::layout::Workspace;
use crate::process::Run;

/// Who may use whom in the tree. Host and guest share only `hooks`, `protocol` and `sys`; the runtime does not link the sandbox.
const LAYERS: &[(&str, &[&str])] = &[
    ("kata-sys", &[]),
    ("kata-protocol", &["kata-sys"]),
    ("kata-engine-api", &["kata-sys"]),
    ("kata-spec", &["kata-sys"]),
    ("kata-config", &["kata-sys"]),
    ("kata-hooks", &["kata-sys"]),
    ("kata-image", &[]),
    ("kata-hypervisor", &["kata-sys"]),
    ("kata-proxy", &["kata-sys"]),
    ("kata-sandbox", &["kata-config", "kata-hypervisor", "kata-protocol", "kata-spec", "kata-sys"]),
    (
        "kata-shim",
        &[
            "kata-config",
            "kata-engine-api",
            "kata-hooks",
            "kata-hypervisor",
            "kata-protocol",
            "kata-sandbox",
            "kata-spec",
            "kata-sys",
        ],
    ),
    ("kata-store", &["kata-sys"]),
    (
        "kata-runtime",
        &["kata-config", "kata-engine-api", "kata-hooks", "kata-spec", "kata-store", "kata-sys"],
    ),
    ("kata-agent", &["kata-hooks", "kata-protocol", "kata-sys"]),
    ("kata-bench-guest", &["kata-sys"]),
    ("kata-nested-host", &[]),
    ("xtask", &["kata-image", "kata-sys"]),
];

/// Tests may use everything.
const TESTS: &[&str] = &["kata-component-tests", "kata-guest-tests", "kata-engine-tests"];
const LICENCE: &str = "Apache-2.0";

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    description: Option<String>,
    manifest_path: String,
    publish: Option<Vec<String>>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// Checks every member of the workspace.
pub fn check(workspace: &Workspace, findings: &mut Findings) -> Result<()> {
    let query = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let text = Run::new("cargo").args(query).cwd(workspace.root()).quietly().output()?;
    let metadata: Metadata =
        serde_json::from_str(&text).context("read what cargo metadata says")?;
    for package in &metadata.packages {
        check_fields(package, findings);
        check_layer(package, findings);
        let manifest = std::fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("read {}", package.manifest_path))?;
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.fail(format!("{}: does not take the lints of the workspace", package.name));
        }
    }
    Ok(())
}

fn check_fields(package: &Package, findings: &mut Findings) {
    if package.license.as_deref() != Some(LICENCE) {
        findings.fail(format!("{}: its licence is not {LICENCE}", package.name));
    }
    if package.description.as_deref().is_none_or(str::is_empty) {
        findings.fail(format!("{}: has no description", package.name));
    }
    if package.publish.as_deref() != Some(&[]) {
        findings.fail(format!("{}: publish is not false", package.name));
    }
}

fn check_layer(package: &Package, findings: &mut Findings) {
    if TESTS.contains(&package.name.as_str()) {
        return;
    }
    let layers: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let Some(allowed) = layers.get(package.name.as_str()) else {
        findings.fail(format!("{}: is not in the table of layers", package.name));
        return;
    };
    for dependency in &package.dependencies {
        // What only the tests of a crate use is no layer.
        let linked = dependency.path.is_some() && dependency.kind.as_deref() != Some("dev");
        if linked && !allowed.contains(&dependency.name.as_str()) {
            findings.fail(format!("{}: must not use {}", package.name, dependency.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &str, kind: Option<&str>) -> Package {
        let dependency = Dependency {
            name: uses.into(),
            kind: kind.map(str::to_owned),
            path: Some(String::new()),
        };
        Package {
            name: name.into(),
            license: Some(LICENCE.into()),
            description: Some("A crate".into()),
            manifest_path: String::new(),
            publish: Some(Vec::new()),
            dependencies: vec![dependency],
        }
    }

    fn layer_failures(package: &Package) -> Vec<String> {
        let mut findings = Findings::default();
        check_layer(package, &mut findings);
        findings.failures
    }

    #[test]
    fn the_runtime_may_not_link_the_sandbox() {
        let found = layer_failures(&package("kata-runtime", "kata-sandbox", None));
        assert_eq!(found, ["kata-runtime: must not use kata-sandbox"]);
    }

    #[test]
    fn tests_of_a_crate_may_use_what_they_like() {
        let package = package("kata-hypervisor", "kata-protocol", Some("dev"));
        assert_eq!(layer_failures(&package), [""; 0]);
    }

    #[test]
    fn a_crate_that_no_layer_lists_is_refused() {
        assert_eq!(layer_failures(&package("kata-new", "kata-sys", None)).len(), 1);
    }

    #[test]
    fn a_crate_without_licence_or_description_is_refused() {
        let mut findings = Findings::default();
        let mut package = package("kata-sys", "", None);
        (package.license, package.description, package.publish) = (None, None, None);
        check_fields(&package, &mut findings);
        assert_eq!(findings.failures.len(), 3);
    }
}
