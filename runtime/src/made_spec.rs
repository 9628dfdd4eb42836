//! Specs that nobody wrote: `run --rootfs`, `run --image` and `spec`.

use std::collections::BTreeMap;

use kata_store::User;
use serde_json::{Value, json};

use crate::args::{Cpus, MadeUp, VolumeWord};

/// What a made-up spec runs.
#[derive(Debug, Default)]
pub struct Program {
    pub args: Vec<String>,
    /// `NAME=VALUE`, below what was typed.
    pub env: Vec<String>,
    pub cwd: String,
    pub user: User,
    pub annotations: BTreeMap<String, String>,
    /// Files of an image have capabilities and set user ids to gain them, as in docker.
    pub may_gain_privileges: bool,
}

/// A made-up spec, of a container that no engine knows of: nobody gives it a link later, and a card that waits for
/// one costs time at every start.
pub fn alone(mut spec: Value) -> Value {
    spec["annotations"]["io.katacontainers.network.spare_nics"] = json!("0");
    spec
}

/// A spec for a program in a root directory.
pub fn made(rootfs: &str, program: &Program, id: &str, made_up: &MadeUp) -> Value {
    let mut spec = kata_spec::default_for(rootfs, &program.args, made_up.terminal);
    let process = &mut spec["process"];
    let User { uid, gid, additional_gids } = &program.user;
    process["user"] = json!({ "uid": uid, "gid": gid });
    if !additional_gids.is_empty() {
        process["user"]["additionalGids"] = json!(additional_gids);
    }
    process["cwd"] = json!(program.cwd);
    process["noNewPrivileges"] = json!(!program.may_gain_privileges);
    if let Some(env) = process["env"].as_array_mut() {
        // A name alone would take the caller's value, and an image has no right to that.
        for variable in program.env.iter().filter(|variable| variable.contains('=')) {
            set_variable(env, variable);
        }
        for variable in &made_up.env {
            set_variable(env, variable);
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.extend(made_up.volume.iter().map(bind));
    }
    spec["hostname"] = json!(made_up.hostname.as_deref().unwrap_or(short_name(id)));
    spec["root"]["readonly"] = json!(made_up.read_only);
    let resources = &mut spec["linux"]["resources"];
    if let Some(memory) = made_up.memory {
        resources["memory"] = json!({ "limit": memory.0 });
    }
    if let Some(Cpus(quota)) = made_up.cpus {
        resources["cpu"] = json!({ "quota": quota, "period": Cpus::PERIOD });
    }
    if !program.annotations.is_empty() {
        spec["annotations"] = json!(program.annotations);
    }
    spec
}

/// A host name has 63 characters at most; ids are ASCII.
fn short_name(id: &str) -> &str {
    id.get(..63).unwrap_or(id)
}

fn bind(volume: &VolumeWord) -> Value {
    let access = if volume.read_only { "ro" } else { "rw" };
    // Relative to where the command was typed, like every path there. Fails only for an empty path, which no word has.
    let source = std::path::absolute(&volume.source).unwrap_or_else(|_| volume.source.clone());
    json!({ "destination": volume.target, "type": "bind", "source": source, "options": ["rbind", access] })
}

/// The spec that `spec` writes: a shell on a terminal in a root that stays as it is, to be edited.
pub fn template() -> Value {
    let made_up = MadeUp { terminal: true, read_only: true, ..MadeUp::default() };
    let program =
        Program { args: vec!["sh".to_owned()], cwd: "/".to_owned(), ..Program::default() };
    let mut spec = made("rootfs", &program, "kata", &made_up);
    // What is edited begins with as little as runc's; tools that edit it go by that.
    let few = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"] = json!({"bounding": few, "effective": few, "permitted": few});
    spec
}

/// Sets a variable in a list of `NAME=VALUE`; a name alone takes the caller's value.
pub fn set_variable(env: &mut Vec<Value>, variable: &str) {
    let name = variable.split_once('=').map_or(variable, |(name, _)| name);
    let value = match variable.contains('=') {
        true => variable.to_owned(),
        false => match std::env::var(name) {
            Ok(value) => format!("{name}={value}"),
            Err(_) => return,
        },
    };
    let sets_name = |other: &Value| {
        other
            .as_str()
            .and_then(|other| other.split_once('='))
            .is_some_and(|(other, _)| other == name)
    };
    env.retain(|other| !sets_name(other));
    env.push(json!(value));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use kata_store::User;

    use super::{Program, made, set_variable, template};
    use crate::{
        args::MadeUp,
        words::{Bytes, Cpus},
    };

    #[test]
    fn what_was_typed_is_in_the_spec() {
        let made_up = MadeUp {
            env: vec!["A=1".into(), "A=2".into()],
            memory: Some(Bytes(1 << 20)),
            cpus: Some(Cpus(150_000)),
            volume: vec!["/host:/guest:ro".parse().unwrap()],
            read_only: true,
            ..MadeUp::default()
        };
        let program = Program {
            args: vec!["id".into()],
            env: vec!["A=0".into(), "B=1".into(), "HOME".into()],
            cwd: "/srv".into(),
            user: User { uid: 7, gid: 0, additional_gids: vec![8] },
            ..Program::default()
        };
        let spec = made("/r", &program, "c1", &made_up);
        assert_eq!(spec["process"]["args"], json!(["id"]));
        assert_eq!(spec["process"]["user"], json!({ "uid": 7, "gid": 0, "additionalGids": [8] }));
        assert_eq!(spec["linux"]["resources"]["cpu"]["quota"], 150_000);
        let env = spec["process"]["env"].as_array().unwrap();
        assert_eq!(env[1..], [json!("B=1"), json!("A=2")]);
        assert_eq!(spec["root"], json!({ "path": "/r", "readonly": true }));
        assert_eq!(spec["hostname"], "c1");
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 1 << 20);
        let mount = spec["mounts"].as_array().unwrap().last().unwrap();
        assert_eq!(
            (&mount["source"], &mount["options"]),
            (&json!("/host"), &json!(["rbind", "ro"]))
        );
    }

    #[test]
    fn the_template_is_a_spec_that_the_bundle_reader_takes() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("rootfs")).unwrap();
        let bundle = crate::bundle::Bundle::made(&template(), scratch.path()).unwrap();
        assert!(bundle.spec.process.terminal);
        assert_eq!(bundle.spec.network, kata_spec::Network::New);
        assert!(bundle.spec.volumes.is_empty());
    }

    #[test]
    fn a_variable_without_a_value_is_the_caller_s() {
        let mut env = vec![json!("X=1")];
        set_variable(&mut env, "KATA_TEST_NO_SUCH_VARIABLE");
        assert_eq!(env, [json!("X=1")]);
        set_variable(&mut env, "PATH");
        assert_eq!(env.len(), 2);
        set_variable(&mut env, "X=");
        assert_eq!(env.last().unwrap(), "X=");
        assert_eq!(env.len(), 2);
    }
}
