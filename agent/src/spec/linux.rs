//! `linux`: namespaces, devices, paths.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Resources, Seccomp, StringMap, null_is_default};

/// What is particular to Linux.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    #[serde(deserialize_with = "null_is_default")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "null_is_default")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "null_is_default")]
    pub sysctl: StringMap,
    pub resources: Option<Resources>,
    #[serde(deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "null_is_default")]
    pub devices: Vec<Device>,
    pub seccomp: Option<Seccomp>,
    pub rootfs_propagation: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub masked_paths: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub readonly_paths: Vec<String>,
    pub personality: Option<Personality>,
    #[serde(deserialize_with = "null_is_default")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

impl Linux {
    /// The container's entry for a namespace of this kind.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind)
    }

    /// What concerns all of its processes.
    pub fn shared(&self) -> Shared {
        Shared {
            user_namespace: self.namespace(NamespaceKind::User).is_some(),
            uid_mappings: self.uid_mappings.clone(),
            personality: self.personality.clone(),
        }
    }

    /// What a user of the container is called outside of its user namespace.
    pub fn outer_uid(&self, uid: u32) -> u32 {
        outer(&self.uid_mappings, uid)
    }

    /// What a group of the container is called outside of its user namespace.
    pub fn outer_gid(&self, gid: u32) -> u32 {
        outer(&self.gid_mappings, gid)
    }

    /// True when the container gets a namespace of this kind made for it.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.path.is_none())
    }
}

/// What of [`Linux`] concerns every process of a container; the rest was done when it was made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Shared {
    /// It has one, whoever made it.
    pub user_namespace: bool,
    pub personality: Option<Personality>,
    uid_mappings: Vec<IdMapping>,
}

impl Shared {
    /// What a user of the container is called outside of its user namespace.
    pub fn outer_uid(&self, uid: u32) -> u32 {
        outer(&self.uid_mappings, uid)
    }
}

fn outer(mappings: &[IdMapping], id: u32) -> u32 {
    let outer = |map: &IdMapping| {
        let offset = id.checked_sub(map.container).filter(|offset| *offset < map.size)?;
        map.host.checked_add(offset)
    };
    mappings.iter().find_map(outer).unwrap_or(id)
}

/// One range of ids of a user namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container: u32,
    #[serde(rename = "hostID")]
    pub host: u32,
    pub size: u32,
}

/// A namespace to make, or (with a path) to join.
#[derive(Debug, Clone, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    #[serde(default)]
    pub path: Option<String>,
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

/// A device node to make in the container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
    pub major: u32,
    pub minor: u32,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Not asked for by name, as those of an engine's enumeration of its host and the default ones: left out where the guest has no
    /// such device, or the container something else in its place.
    pub optional: bool,
    /// Serial number of the disk that it is here, whatever number it has on the host.
    pub disk: Option<String>,
}

/// The execution domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Personality {
    pub domain: String,
}

/// Offset of a clock in a time namespace.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}
