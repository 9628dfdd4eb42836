//! The mount trees that a configuration names, taken as descriptors.
//!
//! Whoever sees the engine's mounts takes them, because the shim's own namespace does not follow those that are made later;
//! and takes clones, because the engine unmounts its own whenever it likes.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use kata_sys::mount_attr::{self, MountAttributes, Reach};
use rustix::{
    fs::CWD,
    mount::{MountAttrFlags, OpenTreeFlags, open_tree},
};
use thiserror::Error;

use crate::Checked;

/// Why a tree was not taken.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TreeError {
    #[error("cannot take the mount tree {}", path.display())]
    Take { path: PathBuf, source: io::Error },
    #[error("cannot make the volume {} read-only", path.display())]
    ReadOnly { path: PathBuf, source: io::Error },
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
        let root = clone(&spec.rootfs, true)?;
        let mut volumes = Vec::new();
        for volume in &spec.volumes {
            let tree = clone(&volume.source, volume.recursive)?;
            if volume.read_only {
                forbid_writing(&tree, &volume.source)?;
            }
            volumes.push(tree);
        }
        Ok(Self { root, volumes })
    }
}

fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, TreeError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
        .map_err(|source| TreeError::Take { path: path.to_owned(), source: source.into() })
}

/// Makes our clone of a tree read-only, so that it is for a guest whose kernel has been taken over, too. As for mount(8),
/// what is mounted below stays as it is.
fn forbid_writing(tree: &OwnedFd, path: &Path) -> Result<(), TreeError> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
    let attributes = MountAttributes { set: read_only.into(), ..MountAttributes::default() };
    mount_attr::change(tree, attributes, Reach::Mount)
        .map_err(|source| TreeError::ReadOnly { path: path.to_owned(), source })
}
