//! `linux.namespaces`.

use std::path::PathBuf;

use serde_json::Value;

use crate::{checked::Network, document::Document, error::SpecError};

/// True when the container has a namespace of this kind.
pub(super) fn has(config: &Value, kind: &str) -> bool {
    list(config).iter().any(|namespace| namespace["type"] == kind)
}

/// Says which network the container is on, and refuses what a VM can't share with its host.
pub(super) fn check(document: &mut Document, config: &Value) -> Result<Network, SpecError> {
    let mut network = Network::Host;
    for (index, namespace) in list(config).iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let kind = namespace["type"].as_str().unwrap_or_default();
        if list(config)[..index].iter().any(|earlier| earlier["type"] == kind) {
            return Err(document.wrong(field, format!("{kind} is listed twice")));
        }
        let path = namespace["path"].as_str().filter(|path| !path.is_empty());
        match (kind, path) {
            ("network", None) => network = Network::New,
            ("network", Some(path)) => network = check_network(document, &field, path)?,
            ("user", _) => {
                return Err(document.refuse(field, "user namespaces are not made in the guest yet"));
            }
            (_, None) => {}
            (kind, Some(path)) => {
                let why =
                    format!("the {kind} namespace {path} is on the host, out of a VM's reach");
                return Err(document.refuse(format!("{field}.path"), why));
            }
        }
    }
    for kind in ["pid", "ipc", "uts", "cgroup"].into_iter().filter(|kind| !has(config, kind)) {
        let how = format!("no {kind} namespace, so that of the guest instead of the host's");
        document.translate("linux.namespaces", how);
    }
    if network == Network::Host {
        document.translate("linux.namespaces", "no network namespace: loopback alone");
    }
    if !has(config, "mount") {
        return Err(document.wrong("linux.namespaces", "needs a mount namespace"));
    }
    Ok(network)
}

fn check_network(document: &Document, field: &str, path: &str) -> Result<Network, SpecError> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(document.wrong(format!("{field}.path"), "must be an absolute path"));
    }
    // Opened by whoever joins it: what is behind a path may change until then.
    Ok(Network::Path(path))
}

fn list(config: &Value) -> &[Value] {
    config["linux"]["namespaces"].as_array().map_or(&[], Vec::as_slice)
}
