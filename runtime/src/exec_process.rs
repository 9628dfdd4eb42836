//! The OCI process object of `exec`: from a file, or the container's own with what was typed in its place.

use std::{fs, io, path::Path};

use kata_spec::read_config;
use serde_json::{Map, Value, json};

use crate::{args::Exec, bundle::BundleError, failure::Failure, made_spec::set_variable};

/// The sets that `--cap` adds to, as runc does: what is inheritable stays as it is, and only with that something can be
/// ambient.
const CAPABILITY_SETS: [&str; 3] = ["bounding", "effective", "permitted"];

/// The process to run. `bundle` is the container's.
pub fn build(exec: &Exec, bundle: &Path) -> Result<Value, Failure> {
    match (&exec.process, exec.command.is_empty()) {
        (Some(file), true) => {
            let mut process = parse(file, fs::read(file))?;
            if exec.tty {
                process.insert("terminal".into(), json!(true));
            }
            Ok(process.into())
        }
        (None, false) => {
            let config = bundle.join("config.json");
            let mut spec = parse(&config, read_config(&config))?;
            match spec.remove("process") {
                Some(Value::Object(own)) => Ok(Value::Object(adapt(own, exec))),
                _ => {
                    Err(Failure::Usage("the container's spec has no process to start from".into()))
                }
            }
        }
        (Some(_), false) => {
            Err(Failure::Usage("--process and a command exclude each other".into()))
        }
        (None, true) => Err(Failure::Usage(
            "process args cannot be empty: give a command, or --process FILE".into(),
        )),
    }
}

/// Whether the process wants a terminal.
pub fn wants_terminal(process: &Value) -> bool {
    process.get("terminal").and_then(Value::as_bool).unwrap_or(false)
}

fn parse(path: &Path, text: io::Result<Vec<u8>>) -> Result<Map<String, Value>, Failure> {
    let text = text.map_err(|source| BundleError::Read { path: path.to_owned(), source })?;
    let parsed = serde_json::from_slice(&text);
    Ok(parsed.map_err(|source| BundleError::Parse { path: path.to_owned(), source })?)
}

fn adapt(mut process: Map<String, Value>, exec: &Exec) -> Map<String, Value> {
    process.remove("consoleSize");
    process.insert("args".into(), json!(exec.command));
    process.insert("terminal".into(), json!(exec.tty));
    if let Some(cwd) = &exec.cwd {
        process.insert("cwd".into(), json!(cwd));
    }
    if exec.no_new_privs {
        process.insert("noNewPrivileges".into(), json!(true));
    }
    if !exec.env.is_empty() {
        let mut env = process.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
        for variable in &exec.env {
            set_variable(&mut env, variable);
        }
        process.insert("env".into(), json!(env));
    }
    let user = process.entry("user").or_insert_with(|| json!({ "uid": 0, "gid": 0 }));
    if let Some(ids) = exec.user {
        user["uid"] = json!(ids.uid);
        if let Some(gid) = ids.gid {
            user["gid"] = json!(gid);
        }
    }
    if !exec.additional_gids.is_empty() {
        let own = user.get("additionalGids").and_then(Value::as_array).cloned();
        let mut gids = own.unwrap_or_default();
        gids.extend(exec.additional_gids.iter().map(|gid| json!(gid)));
        user["additionalGids"] = json!(gids);
    }
    let labels = [("apparmorProfile", &exec.apparmor), ("selinuxLabel", &exec.process_label)];
    for (field, label) in labels {
        if let Some(label) = label {
            process.insert(field.into(), json!(label));
        }
    }
    for capability in &exec.cap {
        add_capability(&mut process, capability);
    }
    process
}

fn add_capability(process: &mut Map<String, Value>, capability: &str) {
    let capabilities = process.entry("capabilities").or_insert_with(|| json!({}));
    let name = capability.to_ascii_uppercase();
    let name = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
    let inherits = capabilities["inheritable"].as_array().is_some_and(|names| !names.is_empty());
    for set in CAPABILITY_SETS.into_iter().chain(inherits.then_some("ambient")) {
        let own = capabilities.get(set).and_then(Value::as_array).cloned();
        let mut names = own.unwrap_or_default();
        if !names.iter().any(|other| other.as_str() == Some(name.as_str())) {
            names.push(json!(name));
        }
        capabilities[set] = json!(names);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::Parser;
    use serde_json::{Value, json};

    use super::{build, wants_terminal};
    use crate::args::{Cli, Command, Exec};

    fn exec(line: &str) -> Exec {
        let words = ["kata-runtime", "exec"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Exec(exec) => *exec,
            other => panic!("{other:?}"),
        }
    }

    fn in_bundle(line: &str) -> Value {
        let bundle = tempfile::tempdir().unwrap();
        let spec = json!({ "process": {
            "terminal": true,
            "consoleSize": { "height": 1, "width": 2 },
            "user": { "uid": 5, "gid": 6 },
            "args": ["init"],
            "env": ["PATH=/bin", "A=1"],
            "cwd": "/home",
            "capabilities": { "bounding": ["CAP_CHOWN"] },
            "rlimits": [],
        } });
        fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
        build(&exec(line), bundle.path()).unwrap()
    }

    #[test]
    fn the_container_s_own_process_is_the_start() {
        let process = in_bundle("c1 ls -la --color");
        assert_eq!(process["args"], json!(["ls", "-la", "--color"]));
        assert_eq!(process["user"], json!({ "uid": 5, "gid": 6 }));
        assert_eq!(process["env"], json!(["PATH=/bin", "A=1"]));
        assert!(process.get("consoleSize").is_none() && process.get("rlimits").is_some());
        assert!(!wants_terminal(&process));
    }

    #[test]
    fn options_take_its_place() {
        let process = in_bundle(
            "-t --cwd /tmp -e A=2 -e B=3 -u 1:2 -g 7 -g 8 --cap sys_admin --cap CAP_CHOWN c1 x",
        );
        assert!(wants_terminal(&process));
        assert_eq!(process["cwd"], "/tmp");
        assert_eq!(process["env"], json!(["PATH=/bin", "A=2", "B=3"]));
        assert_eq!(process["user"], json!({ "uid": 1, "gid": 2, "additionalGids": [7, 8] }));
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_CHOWN", "CAP_SYS_ADMIN"]));
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_SYS_ADMIN", "CAP_CHOWN"]));
        assert_eq!(process["capabilities"].get("ambient"), None);
    }

    #[test]
    fn a_file_is_taken_as_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("process.json");
        fs::write(&file, r#"{"args":["x"],"extra":1}"#).unwrap();
        let line = format!("--process {} --detach --pid-file p -t c1", file.display());
        let process = build(&exec(&line), Path::new("/nonexistent")).unwrap();
        assert_eq!(process, json!({ "args": ["x"], "extra": 1, "terminal": true }));
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let bundle = Path::new("/nonexistent");
        for (line, word) in [
            ("c1", "process args cannot be empty"),
            ("-p /x c1 ls", "exclude"),
            ("-p /x/process.json c1", "/x/process.json"),
            ("c1 ls", "/nonexistent/config.json"),
        ] {
            let error = build(&exec(line), bundle).unwrap_err().line();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
