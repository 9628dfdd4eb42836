//! What a configuration says about the pod that its container is in.

use std::{collections::HashMap, path::Path};

use kata_protocol::POD_PIDS;
use serde_json::Value;

use crate::container::Role;

/// Annotations by which engines say what a container is to its sandbox: containerd's, CRI-O's.
const TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

/// Annotations with the id of the sandbox, the plain grouping of containerd's own shim last.
const SANDBOXES: [&str; 3] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.containerd.runc.v2.group",
];

/// What a container is to its sandbox.
pub fn role(config: &Value) -> Role {
    match TYPES.iter().find_map(|name| annotation(config, name)) {
        Some("sandbox") => Role::Pod,
        Some(_) => Role::Member,
        None if annotation(config, SANDBOXES[2]).is_some() => Role::Member,
        None => Role::Alone,
    }
}

/// Id of the sandbox that the container `id` is in.
pub fn sandbox_id(config: &Value, id: &str) -> String {
    let named = match role(config) {
        Role::Member => SANDBOXES.iter().find_map(|name| annotation(config, name)),
        Role::Alone | Role::Pod => None,
    };
    named.unwrap_or(id).to_owned()
}

fn annotation<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    config["annotations"][name].as_str().filter(|value| !value.is_empty())
}

/// A container of the sandbox, as others name it: by the pid that stands for it on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Neighbour {
    /// The sandbox itself.
    Pod,
    /// A container whose init has this pid in the guest.
    Running(u32),
}

/// Neighbours by their pid on the host.
pub type Neighbours = HashMap<u32, Neighbour>;

/// The guest's path of a namespace that a member's configuration names by a path on the host; none when it is no
/// neighbour's.
///
/// The agent holds the pod's ipc and uts namespaces, and has a pid namespace held for the pod.
pub fn guest_path(neighbours: &Neighbours, kind: &str, host_path: &Path) -> Option<String> {
    let neighbour = neighbours.get(&monitor_of(host_path.to_str()?)?)?;
    match (neighbour, kind) {
        (Neighbour::Pod, "pid") => Some(POD_PIDS.into()),
        (Neighbour::Pod, "ipc" | "uts") => Some(format!("/proc/1/ns/{kind}")),
        (Neighbour::Pod, _) => None,
        (Neighbour::Running(guest_pid), _) => Some(format!("/proc/{guest_pid}/ns/{kind}")),
    }
}

/// Whether a configuration names the pod's own pid namespace.
pub fn shares_pids(config: &Value, neighbours: &Neighbours) -> bool {
    let namespaces = config["linux"]["namespaces"].as_array();
    namespaces.into_iter().flatten().any(|namespace| {
        let monitor = namespace["path"].as_str().and_then(monitor_of);
        let neighbour = monitor.and_then(|pid| neighbours.get(&pid));
        namespace["type"] == "pid" && neighbour == Some(&Neighbour::Pod)
    })
}

/// The process in `/proc/PID/ns/KIND`.
fn monitor_of(path: &str) -> Option<u32> {
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    rest.starts_with("ns/").then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use serde_json::json;

    use super::{Neighbour, Role, guest_path, role, sandbox_id, shares_pids};

    #[test]
    fn annotations_tell_what_a_container_is() {
        let of = |name: &str, value: &str| {
            let config = json!({"annotations": {name: value, "io.kubernetes.cri.sandbox-id": "s"}});
            (role(&config), sandbox_id(&config, "c"))
        };
        let kind = "io.kubernetes.cri.container-type";
        assert_eq!(of(kind, "sandbox"), (Role::Pod, "c".into()));
        assert_eq!(of(kind, "container"), (Role::Member, "s".into()));
        assert_eq!(of("x", "y"), (Role::Alone, "c".into()));
        let grouped = json!({"annotations": {"io.containerd.runc.v2.group": "g"}});
        assert_eq!((role(&grouped), sandbox_id(&grouped, "c")), (Role::Member, "g".into()));
    }

    #[test]
    fn namespaces_of_neighbours_have_paths_in_the_guest() {
        let neighbours = HashMap::from([(7, Neighbour::Pod), (8, Neighbour::Running(33))]);
        let path = |kind: &str, host: &str| guest_path(&neighbours, kind, Path::new(host));
        assert_eq!(path("ipc", "/proc/7/ns/ipc").as_deref(), Some("/proc/1/ns/ipc"));
        assert_eq!(path("pid", "/proc/7/ns/pid").as_deref(), Some("/run/kata/pids"));
        assert_eq!(path("pid", "/proc/8/ns/pid").as_deref(), Some("/proc/33/ns/pid"));
        assert_eq!(path("pid", "/proc/9/ns/pid"), None);
        assert_eq!(path("ipc", "/run/netns/x"), None);
    }

    #[test]
    fn only_the_pods_pid_namespace_has_to_be_held() {
        let neighbours = HashMap::from([(7, Neighbour::Pod), (8, Neighbour::Running(33))]);
        let shares = |kind: &str, path: &str| {
            let namespace = json!({"type": kind, "path": path});
            shares_pids(&json!({"linux": {"namespaces": [namespace]}}), &neighbours)
        };
        assert!(shares("pid", "/proc/7/ns/pid"));
        assert!(!shares("pid", "/proc/8/ns/pid"));
        assert!(!shares("ipc", "/proc/7/ns/ipc"));
    }
}
