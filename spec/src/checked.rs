//! A configuration that can be run.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use kata_sys::mount_table;
use serde_json::{Value, json};

use crate::{
    memory::Memory, overlay::Layers, process::CheckedProcess, resources::Limits, table::Explained,
};

/// A checked configuration: what the host needs of it, and the guest's copy.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Absolute host path of the bundle.
    pub bundle: PathBuf,
    /// Absolute host path of the root file system; a directory when it was looked at.
    pub rootfs: PathBuf,
    /// The container may not write to its root.
    pub read_only_root: bool,
    /// The program, its terminal and environment.
    pub process: CheckedProcess,
    /// `hostname`; of a container without one the host's, as a new namespace has it.
    pub hostname: String,
    /// Network namespace that the sandbox is connected to.
    pub network: Network,
    /// Sources of bind mounts that the guest gets as volumes, in the order of `mounts`.
    pub volumes: Vec<VolumeSource>,
    /// Block devices of the host that the guest gets as disks.
    pub disks: Vec<HostDisk>,
    /// `linux.cgroupsPath` as it was written: a path, or systemd's `slice:prefix:name`.
    pub cgroups_path: Option<String>,
    /// Limits that are also set on the host.
    pub limits: Limits,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `hooks` as they were written; null when there are none.
    pub hooks: Value,
    /// What a person should know although nothing is refused, one line each.
    pub warnings: Vec<String>,
    /// What became of each field that is there.
    pub(crate) explained: BTreeSet<Explained>,
    /// The configuration as the guest gets it, but for the sources of volumes.
    pub(crate) guest: Value,
    /// Destinations of all mounts, for the search for the program.
    pub(crate) mounts: Vec<MountPoint>,
}

impl Checked {
    /// Index of the volume that is mounted at this path of the container.
    pub fn volume_at(&self, destination: &Path) -> Option<usize> {
        let at = |volume: &VolumeSource| {
            let mount = self.mounts.get(volume.mount);
            mount.is_some_and(|mount| mount.destination == destination)
        };
        self.volumes.iter().rposition(at)
    }

    /// Looks once more at what is mounted below volumes on the host: hooks may have mounted something since.
    pub fn look_below_volumes(&mut self) {
        for volume in &mut self.volumes {
            let Origin::Path(path) = &volume.origin else { continue };
            if volume.recursive && mount_table::has_below(path).unwrap_or(true) {
                volume.undivided = false;
                volume.memory = None;
            }
        }
    }

    /// `config.json` for the agent: checked, without what is only for the host, the sources of volumes replaced by what
    /// `volume_path` says about the volume with this index of [`Self::volumes`].
    pub fn guest_spec(&self, volume_path: impl Fn(usize) -> String) -> Vec<u8> {
        let mut guest = self.guest.clone();
        for (number, volume) in self.volumes.iter().enumerate() {
            // rules::check has made the list of volumes from this very list of mounts.
            if let Some(mount) = guest.pointer_mut(&format!("/mounts/{}", volume.mount)) {
                mount["source"] = json!(volume_path(number));
            }
        }
        if guest.pointer("/hooks/startContainer").is_some() {
            guest["hooks"]["state"] = self.hook_state();
        }
        guest.to_string().into_bytes()
    }

    /// `linux.sysctl`.
    pub fn sysctls(&self) -> BTreeMap<String, String> {
        let all = self.guest["linux"]["sysctl"].as_object().into_iter().flatten();
        all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// What a hook is told of the container, but for its id, status and pid.
    fn hook_state(&self) -> Value {
        json!({
            "ociVersion": crate::VERSION,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }

    /// The process of another program in this container: its user, environment and rights, with these arguments.
    pub fn process_with(&self, args: &[String], terminal: bool) -> Value {
        let mut process = self.process.guest.clone();
        process["args"] = json!(args);
        process["terminal"] = json!(terminal);
        process
    }

    /// What became of each field that is there; sorted by path.
    pub fn explain(&self) -> impl Iterator<Item = &Explained> {
        self.explained.iter()
    }
}

/// A block device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostDisk {
    /// Its number, first half.
    pub major: u64,
    /// Second half.
    pub minor: u64,
    /// The container may write to it.
    pub writable: bool,
}

impl HostDisk {
    /// What the guest knows it by.
    pub fn serial(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }
}

/// The network that a container is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// A new one, with loopback alone.
    New,
    /// This one.
    Path(PathBuf),
}

/// The source of a volume.
#[derive(Debug, Clone)]
pub struct VolumeSource {
    /// Index in `mounts`.
    pub mount: usize,
    /// What the guest is shown.
    pub origin: Origin,
    /// With what is mounted below it.
    pub recursive: bool,
    /// What the host mounts below it later appears in it, too.
    pub follows_host: bool,
    /// Its root says what it shows: nothing else is mounted below it, nothing that the host mounts there will be, and the host does not
    /// map its owners.
    pub undivided: bool,
    /// A directory; else a regular file.
    pub directory: bool,
    /// The container may not write to it.
    pub read_only: bool,
    /// Nor to what is mounted below it.
    pub read_only_below: bool,
    /// Owners are shown by this map.
    pub id_map: Option<IdMap>,
    /// A kubelet's directory in memory, which a pod may have in the guest's.
    pub memory: Option<Memory>,
}

/// Which owners of files are shown as which others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// For users.
    pub users: Vec<IdRange>,
    /// For groups.
    pub groups: Vec<IdRange>,
    /// Also for what is mounted below.
    pub recursive: bool,
}

impl IdMap {
    pub(crate) fn of(maps: [&[Value]; 2], recursive: bool) -> Self {
        // The table has seen that these are numbers of 32 bits.
        let number = |range: &Value, name: &str| {
            range[name].as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
        };
        let range = |range: &Value| IdRange {
            inside: number(range, "containerID"),
            outside: number(range, "hostID"),
            count: number(range, "size"),
        };
        let [users, groups] = maps.map(|map| map.iter().map(range).collect());
        Self { users, groups, recursive }
    }
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the file system.
    pub inside: u32,
    /// First id as it is shown.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From this absolute host path.
    Path(PathBuf),
    /// From an overlay that is mounted for it.
    Overlay(Layers),
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Where a mount is, and what of it can be seen from the host.
#[derive(Debug, Clone)]
pub(crate) struct MountPoint {
    pub(crate) destination: PathBuf,
    /// None when the file system is made in the guest.
    pub(crate) host: Option<PathBuf>,
}
