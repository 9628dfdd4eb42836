//! `check --docker`: whether dockerd knows Kata, and what of docker's work is not in a VM.

use std::{fs, io, path::Path};

use serde_json::Value;

use super::Finding;

const WHAT: &str = "docker";
const CONFIGURATION: &str = "/etc/docker/daemon.json";
const INSTALL: &str = "kata-runtime install --docker, and restart dockerd";

pub(super) fn findings() -> [Finding; 2] {
    let builds = Finding::warning(
        "docker's builds",
        "BuildKit can't be given a runtime: what it runs is in no VM",
        "DOCKER_BUILDKIT=0 and \"default-runtime\": \"kata\" in daemon.json; or podman build, or buildah",
    );
    [runtime(Path::new(CONFIGURATION)), builds]
}

fn runtime(configuration: &Path) -> Finding {
    let at = configuration.display();
    let text = match fs::read_to_string(configuration) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => "{}".to_owned(),
        Err(error) => return Finding::warning(WHAT, format!("read {at}: {error}"), INSTALL),
    };
    let Ok(value) = serde_json::from_str::<Value>(&text) else {
        return Finding::warning(WHAT, format!("{at} is no JSON"), "mend it");
    };
    let is_kata = |(_, runtime): &(&String, &Value)| {
        let program = runtime["path"].as_str().map(Path::new);
        program.is_some_and(|path| path.file_name().is_some_and(|name| name == "kata-runtime"))
    };
    match value["runtimes"].as_object().and_then(|all| all.iter().find(is_kata)) {
        Some((name, _)) => Finding::ok(WHAT, format!("docker run --runtime {name}, by {at}")),
        None => Finding::warning(WHAT, format!("no runtime of {at} is kata-runtime"), INSTALL),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::Verdict, findings, runtime};

    #[test]
    fn kata_is_found_by_the_program_of_a_runtime() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("daemon.json");
        let verdict_on = |text: Option<&str>| {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            runtime(&path).verdict
        };
        assert_eq!(verdict_on(None), Verdict::Warning);
        assert_eq!(verdict_on(Some("nonsense")), Verdict::Warning);
        assert_eq!(verdict_on(Some(r#"{"runtimes": {"kata": {"path": "x"}}}"#)), Verdict::Warning);
        let with = r#"{"runtimes": {"vm": {"path": "/opt/bin/kata-runtime"}}}"#;
        assert_eq!(verdict_on(Some(with)), Verdict::Ok);
        assert!(runtime(&path).detail.contains("--runtime vm"));
    }

    #[test]
    fn builds_that_are_in_no_vm_are_told() {
        let [_, builds] = findings();
        assert!(
            builds.detail.contains("BuildKit") && builds.fix.unwrap().contains("DOCKER_BUILDKIT=0")
        );
    }
}
