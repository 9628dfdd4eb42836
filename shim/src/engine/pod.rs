//! What a configuration says about the pod that its container is in.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use kata_protocol::POD_PIDS;
use kata_sandbox::lifecycle::Common;
use serde_json::{Value, json};

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

/// Where containers have their shared memory, and where a pod's is in the guest.
const SHARED_MEMORY: &str = "/dev/shm";

/// Host path of what a configuration binds to `/dev/shm`: engines give all containers of a pod the same.
pub fn shared_memory(config: &Value) -> Option<PathBuf> {
    let mount = mounts(config).find(|mount| mount["type"] == "bind")?;
    mount["source"].as_str().map(PathBuf::from)
}

/// A guest's configuration in which the container's own shared memory is replaced by the pod's.
pub fn with_shared_memory(spec: &[u8]) -> Vec<u8> {
    let Ok(mut config) = serde_json::from_slice::<Value>(spec) else { return spec.to_vec() };
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == SHARED_MEMORY {
            mount["type"] = json!("bind");
            mount["source"] = json!(SHARED_MEMORY);
            mount["options"] = json!(["rbind", "nosuid", "nodev", "noexec"]);
        }
    }
    config.to_string().into_bytes()
}

/// What the configuration of the container that stands for a pod says about all of the pod.
pub fn common(spec: &[u8]) -> Common {
    let Ok(config) = serde_json::from_slice::<Value>(spec) else { return Common::default() };
    let sysctls = config["linux"]["sysctl"].as_object();
    let pairs = sysctls.into_iter().flatten();
    let options = mounts(&config).filter_map(|mount| mount["options"].as_array()).flatten();
    let sizes = options.filter_map(|option| option.as_str()?.strip_prefix("size=")?.parse().ok());
    Common {
        sysctls: pairs
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect(),
        shm_bytes: sizes.last().unwrap_or(0),
        ..Common::default()
    }
}

/// Those at `/dev/shm`.
fn mounts(config: &Value) -> impl Iterator<Item = &Value> {
    let mounts = config["mounts"].as_array().into_iter().flatten();
    mounts.filter(|mount| mount["destination"] == SHARED_MEMORY)
}

/// The process in `/proc/PID/ns/KIND`.
fn monitor_of(path: &str) -> Option<u32> {
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    rest.starts_with("ns/").then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use serde_json::{Value, json};

    use super::{
        Neighbour, Role, common, guest_path, role, sandbox_id, shares_pids, with_shared_memory,
    };

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
    fn what_a_pod_has_in_common_is_in_its_configuration() {
        let shm = |options: &[&str]| json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options});
        let config = json!({
            "linux": {"sysctl": {"net.ipv4.x": "1"}},
            "mounts": [{"destination": "/proc"}, shm(&["mode=1777", "size=4096"])],
        });
        let common = common(config.to_string().as_bytes());
        assert_eq!((common.shm_bytes, common.sysctls["net.ipv4.x"].as_str()), (4096, "1"));
        let shared = with_shared_memory(config.to_string().as_bytes());
        let shared: Value = serde_json::from_slice(&shared).unwrap();
        assert_eq!(shared["mounts"][1]["type"], "bind");
        assert_eq!(shared["mounts"][0], config["mounts"][0]);
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
