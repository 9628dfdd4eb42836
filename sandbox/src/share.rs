//! The shared tree: all that the proxy, and so the guest, sees of the host's files.
//!
//! A tmpfs in the sandbox's private mount namespace with `roots/CONTAINER` and `volumes/N`. It is a *shared* mount
//! there and a slave in the proxy's namespace, so what is attached later appears in the proxy too.
//! Trees come as descriptors of detached mounts: the caller took them in the engine's namespace, and the engine
//! may unmount its own view at will.

use std::{
    ffi::CStr,
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, chmodat, mkdirat, openat, unlinkat},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change,
        move_mount, unmount,
    },
};
use thiserror::Error;

use crate::step::{InjectedFault, Step, Steps};

/// Why the shared tree could not be made or extended.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ShareError {
    #[error("mount on {path}")]
    Mount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("make {path} in the shared tree")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("attach a tree at {path} of the shared tree")]
    Attach {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("detach {path} of the shared tree")]
    Detach {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory.
    Directory,
    /// A file, socket or any other thing that isn't a directory.
    File,
}

/// Where it is mounted, in the sandbox's directory.
pub const DIRECTORY: &str = "shared";

/// The mounted shared tree.
#[derive(Debug)]
pub struct SharedTree {
    path: PathBuf,
    root: OwnedFd,
}

impl SharedTree {
    /// Mounts an empty tree on `path`, which is made if need be. The caller is in the sandbox's own mount namespace.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn mount(path: &Path, steps: &Steps) -> Result<Self, ShareError> {
        steps.enter(Step::MountSharedTree)?;
        let failed =
            |e: rustix::io::Errno| ShareError::Mount { path: path.into(), source: e.into() };
        std::fs::create_dir_all(path)
            .map_err(|source| ShareError::Mount { path: path.into(), source })?;
        mount(
            "kata-shared",
            path,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=4m",
        )
        .map_err(failed)?;
        mount_change(path, MountPropagationFlags::SHARED).map_err(failed)?;
        let root =
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed)?;
        let tree = Self { path: path.into(), root };
        tree.make_directory(Path::new("roots"))?;
        tree.make_directory(Path::new("volumes"))?;
        Ok(tree)
    }

    /// `O_PATH` descriptor of the tree's root, for the proxy.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Attaches a container's root file system.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn attach_root(&self, id: &str, tree: impl AsFd, steps: &Steps) -> Result<(), ShareError> {
        steps.enter(Step::AttachRoot)?;
        let place = Path::new("roots").join(id);
        self.make_directory(&place)?;
        self.attach(tree, &place)
    }

    /// Mounts a new file system as a container's root.
    ///
    /// # Errors
    /// [`ShareError`].
    pub(crate) fn mount_root(
        &self,
        id: &str,
        kind: &str,
        options: &CStr,
        steps: &Steps,
    ) -> Result<(), ShareError> {
        steps.enter(Step::MountLayers)?;
        let place = Path::new("roots").join(id);
        self.make_directory(&place)?;
        let path = self.path.join(place);
        mount("kata-root", &path, kind, MountFlags::NOSUID | MountFlags::NODEV, options)
            .map_err(|e| ShareError::Mount { path, source: e.into() })
    }

    /// Attaches a volume under its number.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn attach_volume(
        &self,
        number: usize,
        kind: VolumeKind,
        tree: impl AsFd,
        steps: &Steps,
    ) -> Result<(), ShareError> {
        steps.enter(Step::AttachVolume)?;
        let place = Path::new("volumes").join(number.to_string());
        match kind {
            VolumeKind::Directory => self.make_directory(&place)?,
            VolumeKind::File => self.make_file(&place)?,
        }
        self.attach(tree, &place)
    }

    /// Takes a container's root file system and its volumes away again. What is not there is no error.
    ///
    /// # Errors
    /// [`ShareError::Detach`].
    pub fn detach(&self, id: &str, volumes: Range<usize>) -> Result<(), ShareError> {
        self.detach_place(&Path::new("roots").join(id))?;
        volumes
            .map(|number| Path::new("volumes").join(number.to_string()))
            .try_for_each(|place| self.detach_place(&place))
    }

    fn detach_place(&self, place: &Path) -> Result<(), ShareError> {
        let failed = |e: Errno| ShareError::Detach { path: place.into(), source: e.into() };
        match unmount(self.path.join(place), UnmountFlags::DETACH) {
            // No mount point, or nothing at all.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let removed = match unlinkat(&self.root, place, AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&self.root, place, AtFlags::REMOVEDIR),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn attach(&self, tree: impl AsFd, place: &Path) -> Result<(), ShareError> {
        move_mount(tree, "", &self.root, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| ShareError::Attach { path: place.into(), source: e.into() })
    }

    fn make_directory(&self, place: &Path) -> Result<(), ShareError> {
        let mode = Mode::from_raw_mode(0o755);
        mkdirat(&self.root, place, mode)
            // The proxy is to get through, whatever the caller's umask.
            .and_then(|()| chmodat(&self.root, place, mode, AtFlags::empty()))
            .map_err(|e| ShareError::Make { path: place.into(), source: e.into() })
    }

    fn make_file(&self, place: &Path) -> Result<(), ShareError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.root, place, flags, Mode::from_raw_mode(0o644))
            .map(drop)
            .map_err(|e| ShareError::Make { path: place.into(), source: e.into() })
    }

    /// Takes the whole tree out of the namespace, for good; what still uses it keeps it until it ends. Idempotent.
    ///
    /// # Errors
    /// [`ShareError::Mount`]: then whoever removes the sandbox's files would remove those of the container.
    pub fn unmount(&self) -> Result<(), ShareError> {
        unmount_at(&self.path)
    }
}

/// The same for a tree that is known by its path alone. No tree there is no error.
///
/// # Errors
/// As of [`SharedTree::unmount`].
pub fn unmount_at(path: &Path) -> Result<(), ShareError> {
    let failed = |source| ShareError::Mount { path: path.into(), source };
    match unmount(path, UnmountFlags::DETACH) {
        // No mount point any more, or no directory.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    // Fails on anything but an empty directory, which is what there must be.
    match std::fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
        _ => Ok(()),
    }
}
