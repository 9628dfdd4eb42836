//! containerd: a drop-in where drop-ins are merged, a marked block where they replace.
//!
//! | `version` of `config.toml` | read by | what an imported file does to the section of CRI | so Kata is |
//! |---|---|---|---|
//! | none, 1 | 1.x | | refused, with what to do |
//! | 2 | 1.x and 2.x | 1.x: **replaces** all of it | a block in the file whose section counts |
//! | 3 and later | 2.x | is merged into it | a drop-in, which the file imports |

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use toml::{Spanned, Table};

use super::{
    NAME, block,
    change::{Change, read, unusable},
};
use crate::failure::Failure;

const FILE: &str = "containerd/config.toml";
const DROP_IN: &str = "50-kata.toml";
/// Where drop-ins are by containerd's own convention.
const DROP_INS: &str = "containerd/conf.d";

/// What CRI calls its section.
const SECTION_V2: &str = "io.containerd.grpc.v1.cri";
const SECTION_V3: &str = "io.containerd.cri.v1.runtime";

/// What is looked at of a configuration.
#[derive(serde::Deserialize)]
struct Head {
    version: Option<i64>,
    #[serde(default)]
    imports: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    plugins: Table,
    #[serde(default)]
    disabled_plugins: Vec<String>,
}

impl Head {
    fn of(path: &Path, text: &str) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|error| unusable(path, error.message()))
    }

    fn imports(&self) -> impl Iterator<Item = &str> {
        let imports = self.imports.iter().flat_map(|imports| imports.get_ref());
        imports.map(|import| import.get_ref().as_str())
    }

    /// The runtime of a section, by its name.
    fn runtime(&self, section: &str) -> Option<&toml::Value> {
        self.plugins.get(section)?.get("containerd")?.get("runtimes")?.get(NAME)
    }
}

/// The lines that make Kata known, in the words of a version.
pub(super) fn runtime(version: i64, shim: &Path) -> String {
    let section = if version < 3 { SECTION_V2 } else { SECTION_V3 };
    let shim = toml::Value::from(shim.to_string_lossy().as_ref());
    let program = match version {
        // containerd 1.6 has the key runtime_path and does not look at it.
        ..=2 => format!("runtime_type = {shim}\n"),
        _ => format!("runtime_type = \"io.containerd.kata.v2\"\nruntime_path = {shim}\n"),
    };
    format!(
        "[plugins.\"{section}\".containerd.runtimes.{NAME}]\n\
         {program}\
         privileged_without_host_devices = true\n\
         pod_annotations = [\"io.katacontainers.*\"]\n\
         container_annotations = [\"io.katacontainers.*\"]\n"
    )
}

/// A whole drop-in.
pub(super) fn drop_in(shim: &Path) -> String {
    format!(
        "# Written by kata-runtime install, removed by the same with --uninstall.\nversion = 3\n\n{}",
        runtime(3, shim)
    )
}

/// What is to change for containerd to know Kata.
pub(super) fn install(etc: &Path, shim: &Path) -> Result<Vec<Change>, Failure> {
    let path = etc.join(FILE);
    let Some(text) = read(&path)? else {
        let text = block::with(FRESH, &runtime(2, shim));
        return Ok(vec![Change::write(path, text)]);
    };
    let head = Head::of(&path, &text)?;
    if let Some(disabled) = head.disabled_plugins.iter().find(|name| name.ends_with("cri")) {
        let why = format!("its disabled_plugins has {disabled:?}: take that out first");
        return Err(unusable(&path, &why));
    }
    match head.version {
        None | Some(..=1) => {
            let why = "its version is 1 (or none is given); `containerd config migrate` writes a newer one";
            Err(unusable(&path, why))
        }
        Some(2) => block(&path, &text, shim).map(|change| vec![change]),
        Some(_) => dropped_in(etc, &path, &text, &head, shim),
    }
}

/// A configuration where none was: with it, everything else is as containerd has it by itself.
const FRESH: &str = "version = 2\n";

/// What is to change for it not to know Kata.
pub(super) fn uninstall(etc: &Path) -> Result<Vec<Change>, Failure> {
    let path = etc.join(FILE);
    let text = read(&path)?.unwrap_or_default();
    let mut changes = Vec::new();
    if !text.is_empty() {
        let mut seen = HashSet::new();
        for file in loaded(&path, &mut seen)? {
            if let Some(text) = read(&file)?
                && block::is_in(&text)
            {
                let rest = Some(block::without(&text)).filter(|rest| rest != FRESH);
                changes.push(Change::to(file, rest));
            }
        }
    }
    for place in drop_in_places(etc, &path, &text)? {
        let file = place.join(DROP_IN);
        if let Some(rest) = without_import(&path, &text, &file)? {
            changes.push(Change::write(path.clone(), rest));
        }
        if read(&file)?.is_some() {
            changes.push(Change::remove(file));
        }
    }
    Ok(changes)
}

/// Whether containerd knows Kata by us.
pub(super) fn is_installed(etc: &Path) -> Result<bool, Failure> {
    Ok(!uninstall(etc)?.is_empty())
}

/// The block, in the file whose section counts.
fn block(path: &Path, text: &str, shim: &Path) -> Result<Change, Failure> {
    let mut chosen = (path.to_owned(), text.to_owned());
    for file in loaded(path, &mut HashSet::new())?.into_iter().skip(1) {
        let Some(text) = read(&file)? else { continue };
        if Head::of(&file, &text)?.plugins.contains_key(SECTION_V2) {
            chosen = (file, text);
        }
    }
    let (path, text) = chosen;
    if Head::of(&path, &block::without(&text))?.runtime(SECTION_V2).is_some() {
        return Err(unusable(&path, "it has a runtime of this name that is not ours"));
    }
    let text = block::with(&text, &runtime(2, shim));
    // Inline tables can't be added to: then the result is no TOML, or says something else.
    if Head::of(&path, &text)?.runtime(SECTION_V2).is_none() {
        return Err(unusable(&path, "the runtime can't be added at its end"));
    }
    Ok(Change::write(path, text))
}

/// The drop-in, and its import if no pattern covers it yet.
fn dropped_in(
    etc: &Path,
    path: &Path,
    text: &str,
    head: &Head,
    shim: &Path,
) -> Result<Vec<Change>, Failure> {
    if head.runtime(SECTION_V3).is_some() {
        return Err(unusable(path, "it has a runtime of this name that is not ours"));
    }
    if let Some(directory) = head.imports().find_map(|pattern| covering(path, pattern)) {
        return Ok(vec![Change::write(directory.join(DROP_IN), drop_in(shim))]);
    }
    let file = etc.join(DROP_INS).join(DROP_IN);
    let mut changes = vec![Change::write(file.clone(), drop_in(shim))];
    if head.imports().any(|import| beside(path, import) == file) {
        return Ok(changes);
    }
    let text = match &head.imports {
        Some(imports) => {
            let inside = imports.span().start + 1;
            format!("{}{}{}", &text[..inside], import_entry(&file), &text[inside..])
        }
        // Keys of the top come before the first table.
        None => format!("{}{text}", import_line(&file)),
    };
    Head::of(path, &text)?;
    changes.push(Change::write(path.to_owned(), text));
    Ok(changes)
}

fn import_entry(file: &Path) -> String {
    format!("{}, ", toml::Value::from(file.to_string_lossy().as_ref()))
}

fn import_line(file: &Path) -> String {
    let file = toml::Value::from(file.to_string_lossy().as_ref());
    format!("imports = [{file}] # kata-runtime install\n")
}

/// A configuration without the import of a file: with it, containerd would not start once the file is gone.
fn without_import(path: &Path, text: &str, file: &Path) -> Result<Option<String>, Failure> {
    for ours in [import_entry(file), import_line(file)] {
        if text.contains(&ours) {
            return Ok(Some(text.replacen(&ours, "", 1)));
        }
    }
    let head = Head::of(path, text)?;
    let Some(imports) = &head.imports else { return Ok(None) };
    let all = imports.get_ref();
    let Some(index) = all.iter().position(|import| beside(path, import.get_ref()) == file) else {
        return Ok(None);
    };
    let span = match (index.checked_sub(1).and_then(|before| all.get(before)), all.get(index + 1)) {
        (_, Some(next)) => all[index].span().start..next.span().start,
        (Some(before), None) => before.span().end..all[index].span().end,
        (None, None) => imports.span().start + 1..imports.span().end - 1,
    };
    Ok(Some(format!("{}{}", &text[..span.start], &text[span.end..])))
}

/// Where our drop-in is, or may be from another time.
fn drop_in_places(etc: &Path, path: &Path, text: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut places = vec![etc.join(DROP_INS)];
    let head = Head::of(path, text)?;
    for directory in head.imports().filter_map(|pattern| covering(path, pattern)) {
        if !places.contains(&directory) {
            places.push(directory);
        }
    }
    Ok(places)
}

/// The directory of a pattern that every drop-in there is imported by.
pub(super) fn covering(parent: &Path, pattern: &str) -> Option<PathBuf> {
    let directory = pattern.strip_suffix("/*.toml").or_else(|| pattern.strip_suffix("/*"))?;
    (!directory.contains('*')).then(|| beside(parent, directory))
}

/// A path of a configuration, relative to where that is.
fn beside(parent: &Path, path: &str) -> PathBuf {
    parent.parent().unwrap_or(Path::new("/")).join(path)
}

/// The files that containerd reads, in its order: a file, then what it imports.
fn loaded(path: &Path, seen: &mut HashSet<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let mut files = vec![path.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        next += 1;
        if !seen.insert(file.clone()) {
            continue;
        }
        let Some(text) = read(&file)? else { continue };
        for pattern in Head::of(&file, &text)?.imports() {
            files.extend(matches(&file, pattern)?);
        }
    }
    let mut order = HashSet::new();
    files.retain(|file| order.insert(file.clone()));
    Ok(files)
}

/// The files that a pattern names; only the last part of a path may have a star.
fn matches(parent: &Path, pattern: &str) -> Result<Vec<PathBuf>, Failure> {
    let path = beside(parent, pattern);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((before, after)) = name.split_once('*') else { return Ok(vec![path]) };
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Failure::host(format!("list {}", path.display())))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
        {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
