//! docker: one key of `daemon.json`, which is everybody's.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    NAME,
    change::{Change, read, unusable},
};
use crate::failure::Failure;

const KEPT: &str = "before-kata";
const FILE: &str = "docker/daemon.json";

/// What is to change in the one file that dockerd has.
pub(super) fn docker(etc: &Path, runtime: &Path, uninstall: bool) -> Result<Vec<Change>, Failure> {
    let path = etc.join(FILE);
    let kept = etc.join(format!("{FILE}.{KEPT}"));
    let text = read(&path)?;
    let with = |text: Option<&str>, runtime: Value| -> Result<String, Failure> {
        let mut value = parse(&path, text.unwrap_or("{}"))?;
        let runtimes = value.entry("runtimes").or_insert_with(|| json!({}));
        let Some(runtimes) = runtimes.as_object_mut() else {
            return Err(unusable(&path, "runtimes is no object"));
        };
        runtimes.insert(NAME.to_owned(), runtime);
        Ok(pretty(&Value::Object(value)))
    };
    if !uninstall {
        let wanted = with(text.as_deref(), json!({ "path": runtime.to_string_lossy() }))?;
        // Byte for byte as somebody wrote it, unless it is ours already.
        let known = text.as_deref().map(|text| has_kata(&path, text)).transpose()?;
        let mut changes = Vec::new();
        match text {
            Some(text) if known == Some(false) => {
                changes.push(Change::copy(kept, text, path.clone()));
            }
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
    // Wherever the runtime was when it was installed.
    let runtime = parse(&path, &text)?.get("runtimes").and_then(|all| all.get(NAME)).cloned();
    let untouched = before.as_deref().zip(runtime);
    let untouched = untouched.map(|(before, runtime)| with(Some(before), runtime)).transpose()?;
    let restored = match (before, untouched) {
        (Some(before), Some(ours)) if same(&ours, &text) => Some(before),
        _ => without(&path, &text)?,
    };
    Ok(vec![Change::to(path, restored), Change::remove(kept)])
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

/// Whether docker knows Kata.
pub(super) fn is_installed(etc: &Path) -> Result<bool, Failure> {
    let path = etc.join(FILE);
    read(&path)?.map_or(Ok(false), |text| has_kata(&path, &text))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::docker;

    const RUNTIME: &str = "/opt/bin/kata-runtime";

    fn apply(etc: &Path, uninstall: bool) {
        for change in docker(etc, Path::new(RUNTIME), uninstall).unwrap() {
            change.settle(false).unwrap();
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
    fn it_comes_back_wherever_the_runtime_was() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("docker")).unwrap();
        fs::write(etc.path().join("docker/daemon.json"), "{\"debug\":   true}").unwrap();
        let before = files(etc.path());
        apply(etc.path(), false);
        for change in docker(etc.path(), Path::new("/elsewhere/kata-runtime"), true).unwrap() {
            change.settle(false).unwrap();
        }
        assert_eq!(files(etc.path()), before);
    }

    #[test]
    fn what_nobody_else_may_read_stays_so() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("docker")).unwrap();
        let path = etc.path().join("docker/daemon.json");
        fs::write(&path, "{\"proxies\": {}}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for uninstall in [false, false, true] {
            apply(etc.path(), uninstall);
            for entry in fs::read_dir(etc.path().join("docker")).unwrap() {
                let mode = entry.unwrap().metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
            }
        }
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
}
