//! The mount trees that a configuration names, taken as descriptors.
//!
//! Whoever sees the engine's mounts takes them, because the shim's own namespace does not follow those that are made later;
//! and takes clones, because the engine unmounts its own whenever it likes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_sys::{
    mount_attr::{self, MountAttributes, Reach},
    user_namespace,
};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags,
        fsconfig_create, fsmount, fsopen, open_tree,
    },
};
use serde_json::Value;
use thiserror::Error;

use crate::{
    Checked, IdMap, IdRange, Origin, OverlayError, VolumeSource, checked::MountPoint,
    mounts::writing,
};

/// Why a tree was not taken.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TreeError {
    #[error("cannot take the mount tree {}", path.display())]
    Take { path: PathBuf, source: io::Error },
    #[error("cannot part the mount tree {} from the host's", path.display())]
    Part { path: PathBuf, source: io::Error },
    #[error("cannot make the volume {} read-only", path.display())]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("cannot make the volume {} writable", path.display())]
    Writable { path: PathBuf, source: io::Error },
    #[error("cannot map the ids of the volume {}", path.display())]
    MapIds { path: PathBuf, source: io::Error },
    #[error("cannot make what stands for a tmpfs")]
    Close(#[source] io::Error),
    #[error("cannot mount an overlay")]
    Overlay(#[source] OverlayError),
}

/// Everything of a bundle that the guest will see.
#[derive(Debug)]
pub struct Trees {
    /// The root file system.
    pub root: OwnedFd,
    /// One for each of [`Checked::volumes`].
    pub volumes: Vec<OwnedFd>,
}

impl Trees {
    /// Clones the trees that a spec names.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn take(spec: &Checked) -> Result<Self, TreeError> {
        let root = clone(&spec.rootfs, true, PRIVATE)?;
        let mut volumes = Vec::new();
        for volume in &spec.volumes {
            let tree = match &volume.origin {
                Origin::Path(path) => take_volume(spec, volume, path)?,
                Origin::Overlay(layers) => {
                    // On the host, as for other volumes: see forbid_writing.
                    let mut attributes = MountAttrFlags::empty();
                    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, volume.read_only);
                    layers.mount(attributes).map_err(TreeError::Overlay)?
                }
            };
            volumes.push(tree);
        }
        Ok(Self { root, volumes })
    }

    /// Clones them once more, for the process that stands for the container on the host.
    ///
    /// In the place of a tmpfs is an empty one that can't be written to: what somebody copies there from the host would not
    /// get into the guest's memory, and had better fail. So it is for a pod's directory in memory that the host has nothing of
    /// now. Where the container shares the host's all the same, as when a hook fills it, a copy fails, too.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn seen(spec: &Checked) -> Result<Seen<'_>, TreeError> {
        let root = clone(&spec.rootfs, true, PRIVATE)?;
        let mut volumes = Vec::new();
        for (index, mount) in spec.mounts.iter().enumerate() {
            let destination = mount.destination.as_path();
            let in_the_guest = |point: &MountPoint| {
                point.host.is_none() && destination.starts_with(&point.destination)
            };
            if spec.mounts[..index].iter().any(in_the_guest) {
                continue;
            }
            let volume = spec.volumes.iter().find(|volume| volume.mount == index);
            let in_memory = match volume {
                Some(volume) => is_unused(volume),
                None => is_tmpfs(spec, index) && destination != Path::new("/dev"),
            };
            if in_memory {
                volumes.push((closed().map_err(TreeError::Close)?, destination));
            } else if let Some((volume, Origin::Path(path))) = volume.map(|it| (it, &it.origin)) {
                volumes.push((take_volume(spec, volume, path)?, destination));
            }
        }
        Ok(Seen { root, volumes })
    }
}

fn is_unused(volume: &VolumeSource) -> bool {
    volume.memory.as_ref().is_some_and(|memory| memory.is_unused().unwrap_or(false))
}

fn is_tmpfs(spec: &Checked, mount: usize) -> bool {
    spec.guest.pointer(&format!("/mounts/{mount}/type")).is_some_and(|kind| kind == "tmpfs")
}

/// An empty file system that nobody writes to.
fn closed() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// What a process on the host can be shown of a container: its root, and the volumes that are mounted in it, not in a file
/// system that the guest makes.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The root file system.
    pub root: OwnedFd,
    /// Volumes, and what stands for each tmpfs, with their destinations, in the order of the mounts.
    pub volumes: Vec<(OwnedFd, &'a Path)>,
}

fn take_volume(spec: &Checked, volume: &VolumeSource, path: &Path) -> Result<OwnedFd, TreeError> {
    let propagation = if volume.follows_host { MountPropagationFlags::DOWNSTREAM } else { PRIVATE };
    let tree = clone(path, volume.recursive, propagation)?;
    if let Some(map) = &volume.id_map {
        map_ids(&tree, map)
            .map_err(|source| TreeError::MapIds { path: path.to_owned(), source })?;
    }
    if volume.read_only_below {
        forbid_writing(&tree, path, Reach::Tree)?;
    } else if volume.read_only {
        forbid_writing(&tree, path, Reach::Mount)?;
    } else if is_lifted(spec, volume, path) {
        allow_writing(&tree)
            .map_err(|source| TreeError::Writable { path: path.to_owned(), source })?;
    }
    Ok(tree)
}

fn is_lifted(spec: &Checked, volume: &VolumeSource, path: &Path) -> bool {
    let options = spec.guest.pointer(&format!("/mounts/{}/options", volume.mount));
    let options = options.and_then(Value::as_array).into_iter().flatten();
    !volume.read_only && writing::is_lifted(options.filter_map(Value::as_str), path)
}

const PRIVATE: MountPropagationFlags = MountPropagationFlags::PRIVATE;

/// A clone of shared mounts is a peer of theirs: taking it away would take theirs away.
fn clone(
    path: &Path,
    recursive: bool,
    propagation: MountPropagationFlags,
) -> Result<OwnedFd, TreeError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, path, flags)
        .map_err(|source| TreeError::Take { path: path.to_owned(), source: source.into() })?;
    let attributes =
        MountAttributes { propagation: propagation.bits().into(), ..MountAttributes::default() };
    mount_attr::change(&tree, attributes, Reach::Tree)
        .map_err(|source| TreeError::Part { path: path.to_owned(), source })?;
    Ok(tree)
}

/// Makes our clone of a tree read-only, so that it is for a guest whose kernel has been taken over, too. As for mount(8),
/// what is mounted below stays as it is, unless the spec says `rro`.
fn forbid_writing(tree: &OwnedFd, path: &Path, reach: Reach) -> Result<(), TreeError> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let attributes = MountAttributes { set: read_only.into(), ..MountAttributes::default() };
    mount_attr::change(tree, attributes, reach)
        .map_err(|source| TreeError::ReadOnly { path: path.to_owned(), source })
}

/// Lets our clone be written to.
fn allow_writing(tree: &OwnedFd) -> io::Result<()> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let attributes = MountAttributes { clear: read_only.into(), ..MountAttributes::default() };
    match mount_attr::change(tree, attributes, Reach::Mount) {
        // Locked by whoever made the engine's user namespace: it stays as it is.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        changed => changed,
    }
}

/// Has our clone show other owners; the guest sees the mapped ones and needs to know nothing of it.
fn map_ids(tree: &OwnedFd, map: &IdMap) -> io::Result<()> {
    let namespace = user_namespace::with_maps(&lines(&map.users), &lines(&map.groups))?;
    let reach = if map.recursive { Reach::Tree } else { Reach::Mount };
    mount_attr::map_ids(tree, namespace, reach)
}

fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    ranges.iter().map(line).collect()
}
