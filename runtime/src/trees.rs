//! Mount trees that are handed to the shim.
//!
//! The caller takes them, because an engine may have mounted them after the shim left for a mount namespace of its own;
//! and takes clones, because the engine unmounts its own whenever it likes.

use std::{os::fd::OwnedFd, path::Path};

use kata_engine_api::handover::Volume;
use kata_spec::Checked;
use kata_sys::mount_attr::{self, MountAttributes, Reach};
use rustix::{
    fs::CWD,
    mount::{MountAttrFlags, OpenTreeFlags, open_tree},
};

use crate::failure::Failure;

/// Everything of a bundle that the guest will see, in the order of the handover.
pub struct Trees {
    pub root: OwnedFd,
    pub volumes: Vec<OwnedFd>,
    pub described: Vec<Volume>,
}

impl Trees {
    /// Clones the trees that a spec names.
    pub fn take(spec: &Checked) -> Result<Self, Failure> {
        let root = clone(&spec.rootfs, true)?;
        let mut trees = Self { root, volumes: Vec::new(), described: Vec::new() };
        for volume in &spec.volumes {
            let tree = clone(&volume.source, volume.recursive)?;
            if volume.read_only {
                forbid_writing(&tree, &volume.source)?;
            }
            trees.volumes.push(tree);
            trees.described.push(Volume { mount: volume.mount, directory: volume.directory });
        }
        Ok(trees)
    }
}

fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
        .map_err(Failure::system(format!("take the mount tree {}", path.display())))
}

/// Makes our clone of a tree read-only, so that it is for a guest whose kernel has been taken over, too. As for mount(8),
/// what is mounted below stays as it is.
fn forbid_writing(tree: &OwnedFd, path: &Path) -> Result<(), Failure> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let attributes = MountAttributes { set: read_only.into(), ..MountAttributes::default() };
    mount_attr::change(tree, attributes, Reach::Mount)
        .map_err(Failure::host(format!("make the volume {} read-only", path.display())))
}
