//! The file system that a pod's files are on, when no engine makes them.
//!
//! Its containers may write to them, so it is a small one: they must not fill the host's `/run`. It is mounted in the shim's
//! own namespace alone, with which it goes; threads in an engine's namespace get a clone of the mount.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_engine_api::containerd::pod::PodSandboxConfig;
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree,
        unmount,
    },
};

use super::pod_config;

/// Extended attributes count as inodes.
const LIMITS: &std::ffi::CStr = c"mode=0755,size=4m,nr_inodes=64";

/// The mounted file system.
#[derive(Debug)]
pub struct Files(PathBuf);

impl Files {
    /// Mounts it on `directory`, which is made. The caller is in the shim's own mount namespace.
    pub fn mount(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("kata-files", &directory, "tmpfs", flags, LIMITS)?;
        Ok(Self(directory))
    }

    /// A clone for a thread elsewhere. The caller is as for [`Files::mount`].
    pub fn clone_mount(&self) -> io::Result<Detached> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &self.0, flags)?;
        Ok(Detached { tree, directory: self.0.clone() })
    }

    /// Takes it away; containers that have files of it keep them until they end.
    pub fn unmount(&self) -> io::Result<()> {
        Ok(unmount(&self.0, UnmountFlags::DETACH)?)
    }
}

/// A clone of the mount that is nowhere yet.
#[derive(Debug)]
pub struct Detached {
    tree: OwnedFd,
    directory: PathBuf,
}

impl Detached {
    /// Writes the files that a configuration asks for.
    pub fn write(&self, config: &PodSandboxConfig) -> io::Result<()> {
        let directory = format!("/proc/self/fd/{}", self.tree.as_raw_fd());
        pod_config::write_files(Path::new(&directory), config)
    }

    /// Attaches it in the caller's namespace, of which nothing is seen elsewhere, at the path of the original.
    pub fn attach(&self) -> io::Result<&Path> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.tree, "", CWD, &self.directory, flags)?;
        Ok(&self.directory)
    }
}
