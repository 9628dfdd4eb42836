//! Python scripts in a container, for what no command of a minimal system says.

use serde_json::{Value, json};

use crate::{Bundle, Kata, Output, debian, unique};

/// Runs a Python script in a container on Debian whose configuration `change` has changed; `None`, after a word on why,
/// where there is no Kata or no root.
pub fn python(script: &str, change: impl FnOnce(&mut Value)) -> Option<Output> {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return None };
    Some(run_bundle(&kata, Bundle::new(&kata, root, &["python3", "-c", script]), change))
}

/// Runs what a bundle says, after a last change to it.
pub fn run_bundle(kata: &Kata, mut bundle: Bundle, change: impl FnOnce(&mut Value)) -> Output {
    change(&mut bundle.config);
    bundle.write();
    kata.call(&["run", "--bundle", bundle.path(), &unique("test")])
}

/// Gives the container's program a capability.
pub fn grant(config: &mut Value, capability: &str) {
    for set in ["bounding", "effective", "permitted"] {
        let list = &mut config["process"]["capabilities"][set];
        list.as_array_mut().unwrap().push(json!(capability));
    }
}
