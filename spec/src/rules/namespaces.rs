//! `linux.namespaces`, with the maps and offsets that belong to some of them.

use std::path::{Path, PathBuf};

use rustix::system::uname;
use serde_json::{Value, json};

use crate::{
    checked::Network, document::Document, error::SpecError, load::Neighbours, rules::elements,
};

/// Most lines that the kernel takes in an id map (user_namespaces(7)).
const LONGEST_MAP: usize = 340;

/// The clocks that a time namespace has offsets for (time_namespaces(7)).
const CLOCKS: [&str; 2] = ["boottime", "monotonic"];

/// True when the container has a namespace of this kind.
pub(super) fn has(config: &Value, kind: &str) -> bool {
    list(config).iter().any(|namespace| namespace["type"] == kind)
}

/// Says which network the container is on, and refuses what a VM can't share with its host. A path that belongs to a
/// neighbour in the sandbox becomes the guest's path of that namespace in the guest's copy.
pub(super) fn check(
    document: &mut Document,
    config: &Value,
    guest: &mut Value,
    neighbours: &Neighbours<'_>,
) -> Result<Network, SpecError> {
    let mut network = None;
    for (index, namespace) in list(config).iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let kind = namespace["type"].as_str().unwrap_or_default();
        if list(config)[..index].iter().any(|earlier| earlier["type"] == kind) {
            return Err(document.wrong(field, format!("{kind} is listed twice")));
        }
        let path = namespace["path"].as_str().filter(|path| !path.is_empty());
        match (kind, path) {
            ("network", None) => network = Some(Network::New),
            ("network", Some(path)) => {
                let checked = check_network(document, &field, path);
                network = document.settle(checked)?.or(Some(Network::New));
            }
            (_, None) => {}
            (kind, Some(path)) => {
                let field = format!("{field}.path");
                let shared = share(document, (&field, kind, path), (config, neighbours));
                if let Some(shared) = document.settle(shared)? {
                    guest["linux"]["namespaces"][index]["path"] = json!(shared);
                }
            }
        }
    }
    if let Some(kind) = ["pid", "ipc"].into_iter().find(|kind| !has(config, kind)) {
        return Err(document.refuse("linux.namespaces", of_the_host(kind)));
    }
    let Some(network) = network else {
        return Err(document.refuse("linux.namespaces", of_the_host("network")));
    };
    if !has(config, "uts") {
        document
            .translate("linux.namespaces", "no uts namespace: the guest's, with the host's name");
    }
    if !has(config, "cgroup") {
        document.translate("linux.namespaces", "no cgroup namespace: one of its own in the guest");
    }
    if !has(config, "mount") {
        return Err(document.wrong("linux.namespaces", "needs a mount namespace"));
    }
    check_id_maps(document, config)?;
    check_offsets(document, config)?;
    Ok(network)
}

/// The guest's path of a namespace that a container of this sandbox is in.
fn share(
    document: &mut Document,
    (field, kind, path): (&str, &str, &str),
    (config, neighbours): (&Value, &Neighbours<'_>),
) -> Result<String, SpecError> {
    if matches!(kind, "mount" | "user") {
        let why = format!("a {kind} namespace is a container's own in the guest, so not {path}");
        return Err(document.refuse(field, why));
    }
    if kind == "cgroup" && has(config, "user") {
        let why = format!("{path} is out of reach from a user namespace of the container's own");
        return Err(document.refuse(field, why));
    }
    match neighbours(kind, Path::new(path)) {
        Some(shared) => {
            document.translate(field, format!("the {kind} namespace of its neighbour, {shared}"));
            Ok(shared)
        }
        None => {
            let why = format!(
                "the {kind} namespace {path} is of no container of this sandbox, so out of a VM's reach"
            );
            Err(document.refuse(field, why))
        }
    }
}

/// Gives the guest's copy the namespaces that a container of a VM always has.
pub(super) fn complete(config: &Value, guest: &mut Value) {
    if has(config, "cgroup") {
        return;
    }
    if let Some(list) = guest["linux"]["namespaces"].as_array_mut() {
        list.push(json!({ "type": "cgroup" }));
    }
}

/// The name of a container for which none is given: it shares the host's, or has a copy of it.
pub(super) fn inherited_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// Leaving a namespace out is how an engine asks for the host's.
fn of_the_host(kind: &str) -> String {
    format!("no {kind} namespace is given, which is the host's, and a VM can't share that")
}

fn check_network(document: &Document, field: &str, path: &str) -> Result<Network, SpecError> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err(document.wrong(format!("{field}.path"), "must be an absolute path"));
    }
    // Opened by whoever joins it: what is behind a path may change until then.
    Ok(Network::Path(path))
}

/// A user namespace and its maps need each other.
fn check_id_maps(document: &Document, config: &Value) -> Result<(), SpecError> {
    let user = has(config, "user");
    for name in ["uidMappings", "gidMappings"] {
        let field = format!("linux.{name}");
        let map = elements(&config["linux"][name]);
        match (user, map.is_empty()) {
            (true, true) => {
                return Err(document.wrong(field, "is missing: there is a user namespace"));
            }
            (false, false) => return Err(document.wrong(field, "needs a user namespace")),
            _ => check_map(document, &field, map)?,
        }
        // In whose name everything in it is made, by runc, too.
        if user && !map.iter().any(|range| range["containerID"] == 0) {
            return Err(document.wrong(field, "has no number for the container's root (0)"));
        }
    }
    Ok(())
}

/// What the kernel would say EINVAL to, with the line that it means.
pub(crate) fn check_map(document: &Document, field: &str, map: &[Value]) -> Result<(), SpecError> {
    if map.len() > LONGEST_MAP {
        let why = format!("has {} ranges; the kernel takes at most {LONGEST_MAP}", map.len());
        return Err(document.wrong(field, why));
    }
    let number = |range: &Value, name: &str| range[name].as_u64().unwrap_or_default();
    for (index, range) in map.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let size = number(range, "size");
        if size == 0 {
            return Err(document.wrong(format!("{field}.size"), "must not be 0"));
        }
        for side in ["containerID", "hostID"] {
            let first = number(range, side);
            // The highest number stands for "no id".
            if first + size > u64::from(u32::MAX) {
                return Err(document.wrong(field, format!("goes beyond the last id from {side}")));
            }
            let overlaps = |other: &Value| {
                let start = number(other, side);
                first < start + number(other, "size") && start < first + size
            };
            if map[..index].iter().any(overlaps) {
                return Err(document.wrong(field, format!("overlaps an earlier range by {side}")));
            }
        }
    }
    Ok(())
}

fn check_offsets(document: &Document, config: &Value) -> Result<(), SpecError> {
    let offsets = config["linux"]["timeOffsets"].as_object();
    for clock in offsets.into_iter().flat_map(|offsets| offsets.keys()) {
        let field = format!("linux.timeOffsets[{clock:?}]");
        if !CLOCKS.contains(&clock.as_str()) {
            let why = format!("is no clock with an offset: {}", CLOCKS.join(", "));
            return Err(document.wrong(field, why));
        }
        if !has(config, "time") {
            return Err(document.wrong(field, "needs a time namespace"));
        }
    }
    Ok(())
}

fn list(config: &Value) -> &[Value] {
    elements(&config["linux"]["namespaces"])
}
