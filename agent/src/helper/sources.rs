//! What the container's mounts are made from and only the helper can reach: taken as detached mounts before the clone.
//!
//! The process that sets the root up may be root of a user namespace only, to whom the agent's directories are closed.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    devices,
    mounts::{self, clone_opened, clone_tree},
    options::{Extent, Options},
};
use crate::{
    boot::SCRUBBED_COMMAND_LINE,
    memory,
    order::{Failure, Step},
    spec::{Linux, Mount, NamespaceKind, Spec},
};

/// Detached copies of the agent's mounts.
#[derive(Debug)]
pub struct Sources {
    /// The root file system.
    pub root: OwnedFd,
    /// For each mount of the spec that needs one.
    pub mounts: Vec<Option<OwnedFd>>,
    /// `/proc/cmdline` without the boot nonce.
    pub command_line: OwnedFd,
    /// Device nodes by path, where the container can't make its own.
    pub devices: Vec<(PathBuf, OwnedFd)>,
    /// Where the agent's own device nodes of the container are.
    pub nodes: PathBuf,
}

impl Sources {
    /// Takes all of them.
    pub fn take(
        (container_id, root): (&str, &Path),
        spec: &Spec,
        linux: &Linux,
    ) -> Result<Self, Failure> {
        let copy = |path: &Path, extent| {
            clone_tree(path, extent).step(|| format!("take {}", path.display()))
        };
        let user_namespace = linux.namespace(NamespaceKind::User).is_some();
        let nodes = devices::nodes_of(container_id);
        let devices = if user_namespace { devices::take_all(linux, &nodes)? } else { Vec::new() };
        Ok(Self {
            root: copy(root, Extent::Tree)?,
            mounts: spec
                .mounts
                .iter()
                .map(|mount| of_mount(mount, user_namespace))
                .collect::<Result<_, _>>()?,
            command_line: copy(Path::new(SCRUBBED_COMMAND_LINE), Extent::Mount)?,
            devices,
            nodes,
        })
    }
}

/// Containers write to what is in memory, and so what is below it is looked for with care.
fn take_source(source: &Path, extent: Extent) -> io::Result<OwnedFd> {
    match memory::open(source) {
        Some(opened) => Ok(clone_opened(opened?, extent)?),
        None => Ok(clone_tree(source, extent)?),
    }
}

fn of_mount(mount: &Mount, user_namespace: bool) -> Result<Option<OwnedFd>, Failure> {
    let options = Options::parse(&mount.options);
    if let Some(extent) = mounts::bind_extent(mount, &options) {
        let source = mount.source.as_deref().unwrap_or_default();
        return take_source(Path::new(source), extent)
            .step(|| format!("bind {source} to {}", mount.destination))
            .map(Some);
    }
    // The network namespace is the sandbox's, so a user namespace may not mount its sysfs: it gets ours.
    if user_namespace && mount.kind.as_deref() == Some("sysfs") {
        return clone_tree(Path::new("/sys"), Extent::Mount).step(|| "take /sys").map(Some);
    }
    Ok(None)
}
