//! `check --docker`: whether dockerd knows Kata, and what of docker's work is not in a VM.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::Finding;
use crate::failure::one_line;

const WHAT: &str = "docker";
const CONFIGURATION: &str = "/etc/docker/daemon.json";
/// Where dockerd keeps what it has, unless it is told otherwise.
const DATA: &str = "/var/lib/docker";
/// What containerd calls the shim, and how it is found by that.
const KIND: &str = "io.containerd.kata.v2";
const SHIM: &str = "containerd-shim-kata-v2";
const INSTALL: &str = "kata-runtime install --docker, and restart dockerd";

pub(super) fn findings() -> Vec<Finding> {
    findings_of(Path::new(CONFIGURATION))
}

fn findings_of(configuration: &Path) -> Vec<Finding> {
    let builds = Finding::warning(
        "docker's builds",
        "BuildKit can't be given a runtime: what it runs is in no VM",
        "DOCKER_BUILDKIT=0 and \"default-runtime\": \"kata\" in daemon.json, with which docker's managed plugins do not work; \
         or podman build, or buildah",
    );
    let (runtime, plugins) = match read(configuration) {
        Ok(value) => (runtime(configuration, &value), plugins(configuration, &value)),
        Err(finding) => (finding, None),
    };
    [runtime, builds].into_iter().chain(plugins).collect()
}

/// No file says what an empty one does.
fn read(configuration: &Path) -> Result<Value, Finding> {
    let at = configuration.display();
    let text = match fs::read_to_string(configuration) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => "{}".to_owned(),
        Err(error) => return Err(Finding::warning(WHAT, format!("read {at}: {error}"), INSTALL)),
    };
    serde_json::from_str(&text)
        .map_err(|_| Finding::warning(WHAT, format!("{at} is no JSON"), "mend it"))
}

fn runtime(configuration: &Path, value: &Value) -> Finding {
    let at = configuration.display();
    let runtimes = value["runtimes"].as_object().into_iter().flatten();
    match runtimes.into_iter().find(|(_, runtime)| is_kata(runtime)) {
        Some((name, _)) => Finding::ok(WHAT, format!("docker run --runtime {name}, by {at}")),
        None => Finding::warning(WHAT, format!("no runtime of {at} is kata-runtime"), INSTALL),
    }
}

/// By the command line's program, or by the shim's, which is also named by its kind.
fn is_kata(runtime: &Value) -> bool {
    let program = |key: &str| runtime[key].as_str().and_then(|path| Path::new(path).file_name());
    program("path").is_some_and(|name| name == "kata-runtime")
        || program("runtimeType").is_some_and(|name| name == SHIM || name == KIND)
}

/// Plugins that dockerd runs, and can't reach, since it runs them by its default runtime.
fn plugins(configuration: &Path, value: &Value) -> Option<Finding> {
    let default = value["default-runtime"].as_str()?;
    if default != KIND && !is_kata(&value["runtimes"][default]) {
        return None;
    }
    let place = Path::new(value["data-root"].as_str().unwrap_or(DATA)).join("plugins");
    let names = plugins_in(&place);
    let at = configuration.display();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        Finding::warning(
            "docker's plugins",
            format!(
                "{names}: dockerd runs them by the default runtime of {at}, which is Kata, and can't reach the socket of a \
                 plugin in a guest"
            ),
            "leave \"default-runtime\" to runc, and say --runtime kata of each container; or docker plugin disable",
        )
    })
}

/// The names of the plugins that are installed; each has a directory.
fn plugins_in(place: &Path) -> Vec<String> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let name = |path: PathBuf| {
        let text = fs::read(path.join("config.json")).ok()?;
        let about: Value = serde_json::from_slice(&text).unwrap_or_default();
        let name = about["plugin"]["Name"].as_str().map(one_line);
        name.or_else(|| Some(path.file_name()?.to_string_lossy().into_owned()))
    };
    let mut names: Vec<String> = entries.filter_map(|entry| name(entry.path())).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::{
        super::{Finding, Verdict},
        findings_of,
    };

    /// With this configuration, or with none.
    fn findings(scratch: &Path, text: Option<&str>) -> Vec<Finding> {
        let path = scratch.join("daemon.json");
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        findings_of(&path)
    }

    #[test]
    fn kata_is_found_by_the_program_of_a_runtime() {
        let scratch = tempfile::tempdir().unwrap();
        for (text, verdict) in [
            (None, Verdict::Warning),
            (Some("nonsense"), Verdict::Warning),
            (Some(r#"{"runtimes": {"vm": {"path": "x"}}}"#), Verdict::Warning),
            (Some(r#"{"runtimes": {"vm": {"path": "/opt/bin/kata-runtime"}}}"#), Verdict::Ok),
            (
                Some(r#"{"runtimes": {"vm": {"runtimeType": "io.containerd.kata.v2"}}}"#),
                Verdict::Ok,
            ),
            (
                Some(r#"{"runtimes": {"vm": {"runtimeType": "io.containerd.runc.v2"}}}"#),
                Verdict::Warning,
            ),
        ] {
            let found = findings(scratch.path(), text);
            assert_eq!(found[0].verdict, verdict, "{text:?}");
            assert!(verdict == Verdict::Warning || found[0].detail.contains("--runtime vm"));
        }
    }

    #[test]
    fn builds_that_are_in_no_vm_are_told() {
        let scratch = tempfile::tempdir().unwrap();
        let found = findings(scratch.path(), None);
        assert_eq!(found.len(), 2);
        let fix = found[1].fix.unwrap();
        assert!(found[1].detail.contains("BuildKit") && fix.contains("DOCKER_BUILDKIT=0"));
        assert!(fix.contains("plugins"));
    }

    #[test]
    fn plugins_are_told_where_kata_is_the_default() {
        let scratch = tempfile::tempdir().unwrap();
        let with = |default: &str, data: &str| {
            let runtimes = json!({"vm": {"path": "/opt/bin/kata-runtime"}, "other": {"path": "x"}});
            json!({"runtimes": runtimes, "default-runtime": default, "data-root": data}).to_string()
        };
        let place = scratch.path().join("plugins");
        fs::create_dir_all(place.join("storage")).unwrap();
        let data = scratch.path().to_str().unwrap();
        let told = |text: &str| findings(scratch.path(), Some(text)).pop().unwrap();
        assert_eq!(told(&with("vm", data)).what, "docker's builds", "there is none");
        for (id, text) in [("a1", r#"{"plugin": {"Name": "x/sshfs:latest"}}"#), ("b2", "")] {
            fs::create_dir(place.join(id)).unwrap();
            fs::write(place.join(id).join("config.json"), text).unwrap();
        }
        for default in ["vm", "io.containerd.kata.v2"] {
            let plugins = told(&with(default, data));
            assert_eq!((plugins.what, plugins.verdict), ("docker's plugins", Verdict::Warning));
            assert!(plugins.detail.starts_with("b2, x/sshfs:latest: "), "{}", plugins.detail);
        }
        for default in ["other", "runc"] {
            assert_eq!(told(&with(default, data)).what, "docker's builds", "{default}");
        }
        assert_eq!(told(&with("vm", "/none")).what, "docker's builds");
    }
}
