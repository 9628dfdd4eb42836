//! The text files of the tree.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::layout::Workspace;

/// A file with its path from the root of the tree.
#[derive(Debug)]
pub struct TextFile {
    pub path: String,
    pub text: String,
}

/// Directories with nothing of ours in them.
const SKIPPED: &[&str] = &[".git", "target"];

/// All files that are UTF-8, sorted. It walks the tree rather than ask git, so that a file counts before it is added and
/// an unpacked archive can be checked.
pub fn tracked(workspace: &Workspace) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    walk(workspace.root(), "", &mut files)?;
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn walk(directory: &Path, below: &str, files: &mut Vec<TextFile>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{below}{name}");
        let kind = entry.file_type().with_context(|| format!("look at {path}"))?;
        if kind.is_dir() && !SKIPPED.contains(&path.as_str()) {
            walk(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).with_context(|| format!("read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(TextFile { path, text });
            }
        }
    }
    Ok(())
}
