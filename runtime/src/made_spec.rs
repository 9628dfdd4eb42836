//! Specs that nobody wrote: `run --rootfs` and `spec`.

use serde_json::{Value, json};

use crate::args::{MadeUp, VolumeWord};

/// A spec for a command in a root directory.
pub fn for_rootfs(rootfs: &str, command: &[String], id: &str, made_up: &MadeUp) -> Value {
    let mut spec = kata_spec::default_for(rootfs, command, made_up.terminal);
    let process = &mut spec["process"];
    process["user"] =
        json!({ "uid": made_up.user.uid, "gid": made_up.user.gid.unwrap_or_default() });
    process["cwd"] = json!(made_up.cwd);
    if let Some(env) = process["env"].as_array_mut() {
        for variable in &made_up.env {
            set_variable(env, variable);
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.extend(made_up.volume.iter().map(bind));
    }
    spec["hostname"] = json!(made_up.hostname.as_deref().unwrap_or(short_name(id)));
    spec["root"]["readonly"] = json!(made_up.read_only);
    if let Some(memory) = made_up.memory {
        spec["linux"]["resources"]["memory"] = json!({ "limit": memory.0 });
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

/// The spec that `spec` writes: a shell on a terminal, to be edited.
pub fn template() -> Value {
    let made_up = MadeUp { terminal: true, cwd: "/".to_owned(), ..MadeUp::default() };
    for_rootfs("rootfs", &["sh".to_owned()], "kata", &made_up)
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

    use super::{for_rootfs, set_variable, template};
    use crate::{
        args::MadeUp,
        words::{Bytes, UserIds},
    };

    #[test]
    fn what_was_typed_is_in_the_spec() {
        let made_up = MadeUp {
            env: vec!["A=1".into(), "A=2".into()],
            cwd: "/srv".into(),
            user: UserIds { uid: 7, gid: None },
            memory: Some(Bytes(1 << 20)),
            volume: vec!["/host:/guest:ro".parse().unwrap()],
            read_only: true,
            ..MadeUp::default()
        };
        let spec = for_rootfs("/r", &["id".into()], "c1", &made_up);
        assert_eq!(spec["process"]["args"], json!(["id"]));
        assert_eq!(spec["process"]["user"], json!({ "uid": 7, "gid": 0 }));
        assert_eq!(spec["process"]["env"].as_array().unwrap().last().unwrap(), "A=2");
        assert_eq!(spec["process"]["env"].as_array().unwrap().len(), 2);
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
