//! `install`: makes an engine know Kata, and takes it back.
//!
//! ```text
//! asked for ─► changes: file, what it is to hold (or nothing) ─► --dry-run: told │ else: made, by a rename each
//! ```
//!
//! podman has a directory for drop-ins; dockerd has one file for everybody: there one key is set, what stood there before is
//! kept beside it and comes back with `--uninstall` if nobody has changed the file since. Doing it twice changes nothing.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use kata_config::Artefact;
use serde_json::{Value, json};

use super::{Context, print};
use crate::{args::Install, failure::Failure};

/// Name of the runtime in engines.
const NAME: &str = "kata";
const KEPT: &str = "before-kata";
const PODMAN: &str = "containers/containers.conf.d/50-kata.conf";
const DOCKER: &str = "docker/daemon.json";
const ACCELERATOR: &str = "kata/config.d/50-install.toml";

/// A file that changes.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    path: PathBuf,
    /// What it is to hold; none: it is to go.
    text: Option<String>,
}

impl Change {
    fn write(path: PathBuf, text: String) -> Self {
        Self { path, text: Some(text) }
    }

    fn remove(path: PathBuf) -> Self {
        Self { path, text: None }
    }

    /// Whether the file is not yet as it is to be.
    fn is_due(&self) -> Result<bool, Failure> {
        Ok(read(&self.path)? != self.text)
    }

    fn make(&self) -> Result<(), Failure> {
        let failed = |error| Failure::host(format!("change {}", self.path.display()))(error);
        let Some(text) = &self.text else { return fs::remove_file(&self.path).map_err(failed) };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(failed)?;
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path)).map_err(failed)
    }
}

impl Context<'_> {
    pub(super) fn install(&self, typed: &Install) -> Result<(), Failure> {
        if !typed.podman && !typed.docker {
            return Err(Failure::Usage("install needs --podman, --docker or both".to_owned()));
        }
        let runtime = self.prefix.find(Artefact::Runtime)?;
        let mut changes = Vec::new();
        let mut advice = Vec::new();
        if typed.podman {
            changes.push(podman(&typed.etc, &runtime, typed.uninstall));
            advice.push("podman --runtime kata run …");
        }
        if typed.docker {
            changes.extend(docker(&typed.etc, &runtime, typed.uninstall)?);
            advice.push(
                "systemctl reload docker (or SIGHUP to dockerd), then docker run --runtime kata …",
            );
        }
        changes.extend(match typed.uninstall {
            true if others(typed)? => None,
            true => no_accelerator(&typed.etc)?,
            false => self.has_kvm().then(|| accelerator(&typed.etc)),
        });
        let mut report = String::new();
        for change in &changes {
            report += &settle(change, typed.dry_run)?;
        }
        if !typed.uninstall {
            for line in advice {
                // A String takes everything that is written to it.
                writeln!(report, "then: {line}").ok();
            }
        }
        print(&report)
    }
}

/// Makes a change, or tells of it.
fn settle(change: &Change, dry_run: bool) -> Result<String, Failure> {
    let path = change.path.display();
    if !change.is_due()? {
        return Ok(format!("as it should be: {path}\n"));
    }
    if !dry_run {
        change.make()?;
    }
    let verb = |done: &'static str, would: &'static str| if dry_run { would } else { done };
    Ok(match &change.text {
        None => format!("{}: {path}\n", verb("removed", "would remove")),
        Some(_) if !dry_run => format!("written: {path}\n"),
        Some(text) => {
            let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
            format!("would write: {path}\n{text}")
        }
    })
}

fn podman(etc: &Path, runtime: &Path, uninstall: bool) -> Change {
    let path = etc.join(PODMAN);
    if uninstall {
        return Change::remove(path);
    }
    let program = json!(runtime.to_string_lossy());
    let text = format!(
        "# Written by kata-runtime install --podman, removed by the same with --uninstall.\n\
         [engine.runtimes]\n{NAME} = [{program}]\n"
    );
    Change::write(path, text)
}

fn docker(etc: &Path, runtime: &Path, uninstall: bool) -> Result<Vec<Change>, Failure> {
    let path = etc.join(DOCKER);
    let kept = etc.join(format!("{DOCKER}.{KEPT}"));
    let text = read(&path)?;
    let with = |text: Option<&str>| -> Result<String, Failure> {
        let mut value = parse(&path, text.unwrap_or("{}"))?;
        let runtimes = value.entry("runtimes").or_insert_with(|| json!({}));
        let Some(runtimes) = runtimes.as_object_mut() else {
            return Err(unusable(&path, "runtimes is no object"));
        };
        runtimes.insert(NAME.to_owned(), json!({ "path": runtime.to_string_lossy() }));
        Ok(pretty(&Value::Object(value)))
    };
    if !uninstall {
        let wanted = with(text.as_deref())?;
        // Byte for byte as somebody wrote it, unless it is ours already.
        let known = text.as_deref().map(|text| has_kata(&path, text)).transpose()?;
        let mut changes = Vec::new();
        match text {
            Some(text) if known == Some(false) => changes.push(Change::write(kept, text)),
            _ => {}
        }
        let current = known == Some(true) && read(&path)?.is_some_and(|text| same(&text, &wanted));
        if !current {
            changes.push(Change::write(path, wanted));
        } else if let Some(text) = read(&path)? {
            changes.push(Change::write(path, text));
        }
        return Ok(changes);
    }
    let Some(text) = text else { return Ok(vec![Change::remove(path), Change::remove(kept)]) };
    let before = read(&kept)?;
    let untouched = before.as_deref().map(|before| with(Some(before))).transpose()?;
    let restored = match (before, untouched) {
        (Some(before), Some(ours)) if same(&ours, &text) => Some(before),
        _ => without(&path, &text)?,
    };
    Ok(vec![Change { path, text: restored }, Change::remove(kept)])
}

/// A configuration without Kata; none if nothing is left of it.
fn without(path: &Path, text: &str) -> Result<Option<String>, Failure> {
    if !has_kata(path, text)? {
        return Ok(Some(text.to_owned()));
    }
    let mut value = parse(path, text)?;
    let is_empty =
        value.get_mut("runtimes").and_then(Value::as_object_mut).is_some_and(|runtimes| {
            runtimes.remove(NAME);
            runtimes.is_empty()
        });
    if is_empty {
        value.remove("runtimes");
    }
    Ok((!value.is_empty()).then(|| pretty(&Value::Object(value))))
}

fn has_kata(path: &Path, text: &str) -> Result<bool, Failure> {
    let value = parse(path, text)?;
    Ok(value.get("runtimes").is_some_and(|runtimes| runtimes.get(NAME).is_some()))
}

fn same(one: &str, other: &str) -> bool {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    parsed(one) == parsed(other)
}

/// Whether an engine that was not named still knows Kata.
fn others(typed: &Install) -> Result<bool, Failure> {
    let podman = !typed.podman && read(&typed.etc.join(PODMAN))?.is_some();
    let file = typed.etc.join(DOCKER);
    let docker = match read(&file)? {
        Some(text) if !typed.docker => has_kata(&file, &text)?,
        _ => false,
    };
    Ok(podman || docker)
}

/// With KVM there, losing it is to be an error, and no silent loss of isolation.
fn accelerator(etc: &Path) -> Change {
    let text = "# Written by kata-runtime install: this host has KVM, and guests are to run under nothing else.\n\
                [hypervisor]\naccelerator = \"kvm\"\n";
    Change::write(etc.join(ACCELERATOR), text.to_owned())
}

fn no_accelerator(etc: &Path) -> Result<Option<Change>, Failure> {
    let path = etc.join(ACCELERATOR);
    Ok(read(&path)?.map(|_| Change::remove(path)))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn parse(path: &Path, text: &str) -> Result<serde_json::Map<String, Value>, Failure> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(unusable(path, "it is no JSON object")),
        Err(error) => Err(unusable(path, &error.to_string())),
    }
}

fn unusable(path: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{} is left as it is: {why}", path.display()))
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::host(format!("read {}", path.display()))(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{docker, podman, settle};

    const RUNTIME: &str = "/opt/bin/kata-runtime";

    fn apply(etc: &Path, uninstall: bool) {
        for change in docker(etc, Path::new(RUNTIME), uninstall).unwrap() {
            settle(&change, false).unwrap();
        }
    }

    fn files(etc: &Path) -> Vec<(String, String)> {
        let Ok(entries) = fs::read_dir(etc.join("docker")) else { return Vec::new() };
        let mut files: Vec<_> = entries
            .flatten()
            .map(|entry| {
                (
                    entry.file_name().to_string_lossy().into_owned(),
                    fs::read_to_string(entry.path()).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn dockers_file_comes_back_byte_for_byte() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("docker")).unwrap();
        let text = "{ \"log-level\": \"warn\",\n\n \"runtimes\": {\"x\": {\"path\": \"/x\"}} }";
        fs::write(etc.path().join("docker/daemon.json"), text).unwrap();
        let before = files(etc.path());
        apply(etc.path(), false);
        let installed = files(etc.path());
        assert!(installed[0].1.contains(RUNTIME) && installed[0].1.contains("/x"), "{installed:?}");
        apply(etc.path(), false);
        assert_eq!(files(etc.path()), installed);
        apply(etc.path(), true);
        assert_eq!(files(etc.path()), before);
        apply(etc.path(), true);
        assert_eq!(files(etc.path()), before);
    }

    #[test]
    fn what_somebody_has_changed_since_is_kept() {
        let etc = tempfile::tempdir().unwrap();
        apply(etc.path(), false);
        let path = etc.path().join("docker/daemon.json");
        let changed = fs::read_to_string(&path).unwrap().replacen('{', "{\"debug\": true,", 1);
        fs::write(&path, changed).unwrap();
        apply(etc.path(), true);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"debug\": true\n}\n");
    }

    #[test]
    fn a_file_that_was_not_there_goes_again() {
        let etc = tempfile::tempdir().unwrap();
        apply(etc.path(), false);
        assert_eq!(files(etc.path()).len(), 1);
        apply(etc.path(), true);
        assert_eq!(files(etc.path()), []);
    }

    #[test]
    fn what_is_no_configuration_is_left_alone() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("docker")).unwrap();
        for text in ["[]", "{", "{\"runtimes\": 1}"] {
            fs::write(etc.path().join("docker/daemon.json"), text).unwrap();
            let error = docker(etc.path(), Path::new(RUNTIME), false).unwrap_err().line();
            assert!(error.contains("left as it is"), "{error}");
        }
    }

    #[test]
    fn a_dry_run_tells_and_does_nothing() {
        let etc = tempfile::tempdir().unwrap();
        let change = podman(etc.path(), Path::new(RUNTIME), false);
        let told = settle(&change, true).unwrap();
        assert!(
            told.contains("would write") && told.contains("kata = [\"/opt/bin/kata-runtime\"]")
        );
        assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 0);
    }
}
