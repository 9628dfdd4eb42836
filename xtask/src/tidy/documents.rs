//! Rules for documents, and for text in general.

use anyhow::Result;

use super::Findings;
use super::files::TextFile;
use crate::layout::Workspace;

const README_LINES: usize = 150;
const REQUIRED: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "NOTICE",
    "README.md",
    "SECURITY.md",
];
/// What every ARCHITECTURE.md answers, as its headings.
const ARCHITECTURE: &[&str] = &[
    "Bird's eye",
    "Life of a container",
    "Code map",
    "Processes and privileges",
    "Trust boundaries",
    "State on disk",
    "Deliberately absent",
];
/// Home directories and workplaces of a machine that builds; where a product's own paths begin is no concern here.
const MACHINE_PATHS: &[&str] = &["/home/", "/root/.", "/work/", "/tmp/spike"];

/// Checks every text file.
pub fn check(workspace: &Workspace, files: &[TextFile], findings: &mut Findings) -> Result<()> {
    for name in REQUIRED {
        if !workspace.root().join(name).is_file() {
            findings.fail(format!("{name} is missing"));
        }
    }
    let makefile = text_of(files, "Makefile");
    check_readme(text_of(files, "README.md"), makefile, findings);
    check_architecture(text_of(files, "ARCHITECTURE.md"), findings);
    check_makefile(makefile, findings);
    for file in files {
        check_text(file, findings);
    }
    Ok(())
}

fn text_of<'a>(files: &'a [TextFile], path: &str) -> &'a str {
    files.iter().find(|file| file.path == path).map_or("", |file| &file.text)
}

/// A README is short, and every `make` command in it is a target.
fn check_readme(readme: &str, makefile: &str, findings: &mut Findings) {
    let lines = readme.lines().count();
    if lines > README_LINES {
        findings.fail(format!("README.md: {lines} lines; the limit is {README_LINES}"));
    }
    for target in readme.lines().filter_map(|line| line.trim().strip_prefix("make ")) {
        let target = target.split_whitespace().next().unwrap_or_default();
        if !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))) {
            findings.fail(format!("README.md: there is no target {target} in the Makefile"));
        }
    }
}

fn check_architecture(text: &str, findings: &mut Findings) {
    for heading in ARCHITECTURE {
        if !text.lines().any(|line| line.starts_with('#') && line.contains(heading)) {
            findings.fail(format!("ARCHITECTURE.md: has no part {heading:?}"));
        }
    }
}

/// Targets are one line each: what they do is in xtask, where it can be tested.
fn check_makefile(makefile: &str, findings: &mut Findings) {
    let recipe = |line: &&str| line.starts_with('\t');
    for line in makefile.lines().filter(recipe) {
        if !line.starts_with("\tcargo xtask ") {
            findings.fail(format!("Makefile: {:?} is more than a call of xtask", line.trim()));
        }
    }
}

fn check_text(file: &TextFile, findings: &mut Findings) {
    // The list above names what it looks for.
    let own_list = file.path == "xtask/src/tidy/documents.rs";
    for (number, line) in (1..).zip(file.text.lines()) {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| !own_list && line.contains(**path)) {
            findings.fail(format!("{}:{number}: {path} is a path of one machine", file.path));
        }
        if line.ends_with([' ', '\t']) {
            findings.fail(format!("{}:{number}: white space at the end of the line", file.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKEFILE: &str = "build:\n\tcargo xtask build\n";

    fn readme_failures(readme: &str) -> Vec<String> {
        let mut findings = Findings::default();
        check_readme(readme, MAKEFILE, &mut findings);
        findings.failures
    }

    #[test]
    fn a_readme_names_only_targets_that_exist() {
        assert_eq!(readme_failures("    make build\n"), [""; 0]);
        assert_eq!(readme_failures("    make coffee\n").len(), 1);
    }

    #[test]
    fn a_long_readme_is_refused() {
        assert_eq!(readme_failures(&"x\n".repeat(README_LINES + 1)).len(), 1);
    }

    #[test]
    fn a_target_that_does_the_work_itself_is_refused() {
        let mut findings = Findings::default();
        check_makefile("build:\n\tcargo build\n", &mut findings);
        check_makefile(MAKEFILE, &mut findings);
        assert_eq!(findings.failures.len(), 1);
    }

    #[test]
    fn paths_of_a_machine_are_refused() {
        let mut findings = Findings::default();
        let text = "see /home/someone/kata\n".to_owned();
        check_text(&TextFile { path: "docs/a.md".into(), text }, &mut findings);
        assert_eq!(findings.failures.len(), 1);
    }
}
