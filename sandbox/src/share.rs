//! The shared tree: all that the proxy, and so the guest, sees of the host's files.
//!
//! A tmpfs in the sandbox's private mount namespace with `roots/CONTAINER` and `volumes/N`. It is a *shared* mount
//! there and a slave in the proxy's namespace, so what is attached later appears in the proxy too.
//! Trees come as descriptors of detached mounts: the caller took them in the engine's namespace, and the engine
//! may unmount its own view at will.
//!
//! The proxy sees the tmpfs itself read-only, only what is attached to it can be written to. But should a guest ever change it
//! all the same, nothing here follows: names are used below descriptors of the two directories, of which each is resolved once, before
//! there is a guest, and no link in the tree is followed, nor a path that leads out of it.
//!
//! A volume of several containers is attached once ([`Shown`]), and detached with the last of them.

mod attached;
mod served;

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

pub use attached::{Shown, is_writable};
use kata_sys::{
    mount_attr::{self, MountAttributes, Reach},
    spawn::Child,
};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, unlinkat},
    io::Errno,
    mount::{
        MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount,
        mount_change, move_mount, unmount,
    },
};
use thiserror::Error;

use self::attached::Attached;
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
    #[error("look at a tree that is to be attached")]
    Look(#[source] io::Error),
    #[error("make {path} of the shared tree writable")]
    Open {
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
    roots: Half,
    volumes: Half,
    attached: Mutex<Attached>,
}

/// Where a container finds its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub number: usize,
    /// The container may write to it, but nobody can before [`SharedTree::open_volume`].
    pub closed: bool,
}

/// A directory of the tree in which things are attached.
#[derive(Debug)]
struct Half {
    name: &'static str,
    directory: OwnedFd,
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
        let roots = Half::make(&root, "roots")?;
        let volumes = Half::make(&root, "volumes")?;
        Ok(Self { path: path.into(), root, roots, volumes, attached: Mutex::default() })
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
        let place = self.roots.make_directory(id)?;
        self.roots.attach(tree, id, &place)
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
        let place = self.roots.make_directory(id)?;
        let target = format!("/proc/self/fd/{}", place.as_raw_fd());
        mount("kata-root", target, kind, MountFlags::NOSUID | MountFlags::NODEV, options)
            .map_err(|e| ShareError::Mount { path: self.roots.place(id), source: e.into() })
    }

    /// A number for what a container has in the place of a volume; no volume will have it.
    pub fn number(&self) -> usize {
        self.attached().number()
    }

    /// Attaches a volume for a container, unless one is attached that shows the same. None shows what `shown` does not say.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn attach_volume(
        &self,
        container: &str,
        (kind, shown): (VolumeKind, Option<Shown>),
        tree: impl AsFd,
        steps: &Steps,
    ) -> Result<Place, ShareError> {
        let writable = is_writable(&tree).map_err(ShareError::Look)?;
        let mut attached = self.attached();
        if let Some((number, open)) =
            shown.as_ref().and_then(|shown| attached.used(container, shown))
        {
            return Ok(Place { number, closed: writable && !open });
        }
        steps.enter(Step::AttachVolume)?;
        let number = attached.add(container, (shown, writable));
        let name = number.to_string();
        let place = match kind {
            VolumeKind::Directory => self.volumes.make_directory(&name)?,
            VolumeKind::File => self.volumes.make_file(&name)?,
        };
        self.volumes.attach(tree, &name, &place)?;
        Ok(Place { number, closed: false })
    }

    /// Lets a volume be written to that was attached read-only: where a proxy to come takes it from, and where `proxy` has it.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn open_volume(
        &self,
        number: usize,
        proxy: Option<&Child>,
        steps: &Steps,
    ) -> Result<(), ShareError> {
        steps.enter(Step::OpenVolume)?;
        let name = number.to_string();
        let failed = |source| ShareError::Open { path: self.volumes.place(&name), source };
        served::allow_writing(&self.volumes.directory, Path::new(&name)).map_err(failed)?;
        if let Some(proxy) = proxy {
            let path = self.volumes.place(&name);
            served::in_namespace_of(proxy, |root| served::allow_writing(root, &path))
                .map_err(failed)?;
        }
        self.attached().opened(number);
        Ok(())
    }

    /// Takes away a container's root file system and the volumes that nobody else uses. What is not there is no error, nor is what
    /// another container has left behind and still can't be detached.
    ///
    /// # Errors
    /// [`ShareError::Detach`], the first; all that there is has been tried.
    pub fn detach(&self, container: &str) -> Result<(), ShareError> {
        // First, for whatever else becomes of it, it uses nothing any more.
        let unused = self.attached().without(container);
        let mut detached = self.roots.detach(container);
        for (number, own) in unused {
            match self.volumes.detach(&number.to_string()) {
                Ok(()) => self.attached().remove(number),
                Err(error) if own => detached = detached.and(Err(error)),
                Err(error) => tracing::warn!(%error, "detach what another container has left"),
            }
        }
        detached
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the whole tree out of the namespace, for good; what still uses it keeps it until it ends. Idempotent.
    ///
    /// # Errors
    /// [`ShareError::Mount`]: then whoever removes the sandbox's files would remove those of the container.
    pub fn unmount(&self) -> Result<(), ShareError> {
        unmount_at(&self.path)
    }
}

impl Half {
    fn make(root: &OwnedFd, name: &'static str) -> Result<Self, ShareError> {
        Ok(Self { name, directory: make_directory(root, name, name)? })
    }

    fn place(&self, name: &str) -> PathBuf {
        Path::new(self.name).join(name)
    }

    fn make_directory(&self, name: &str) -> Result<OwnedFd, ShareError> {
        make_directory(&self.directory, name, self.place(name))
    }

    fn make_file(&self, name: &str) -> Result<OwnedFd, ShareError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat2(&self.directory, name, flags, Mode::from_raw_mode(0o644), inside())
            .map_err(|e| ShareError::Make { path: self.place(name), source: e.into() })
    }

    fn attach(&self, tree: impl AsFd, name: &str, place: &OwnedFd) -> Result<(), ShareError> {
        let failed = |source| ShareError::Attach { path: self.place(name), source };
        // Devices and set-user-id programs are the guest's kernel's; who serves the files has no use for them.
        let set = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let attributes = MountAttributes { set: set.bits().into(), ..MountAttributes::default() };
        mount_attr::change(&tree, attributes, Reach::Tree).map_err(failed)?;
        let both =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree, "", place, "", both).map_err(|e| failed(e.into()))
    }

    fn detach(&self, name: &str) -> Result<(), ShareError> {
        let failed = |e: Errno| ShareError::Detach { path: self.place(name), source: e.into() };
        // Nothing between the descriptor and the name, and a link of that name is not followed.
        let path = format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd());
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // No mount point, or nothing at all.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        let removed = match unlinkat(&self.directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => unlinkat(&self.directory, name, AtFlags::REMOVEDIR),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Neither out of the tree, nor by a link, nor into what is attached.
fn inside() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV
}

fn make_directory(
    parent: &OwnedFd,
    name: &str,
    place: impl Into<PathBuf>,
) -> Result<OwnedFd, ShareError> {
    let mode = Mode::from_raw_mode(0o755);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    mkdirat(parent, name, mode)
        .and_then(|()| openat2(parent, name, flags, Mode::empty(), inside()))
        // The proxy is to get through, whatever the caller's umask.
        .and_then(|made| fchmod(&made, mode).map(|()| made))
        .map_err(|e| ShareError::Make { path: place.into(), source: e.into() })
}

/// The same for a tree that is known by its path alone. No tree there is no error.
///
/// # Errors
/// As of [`SharedTree::unmount`].
pub fn unmount_at(path: &Path) -> Result<(), ShareError> {
    let failed = |source| ShareError::Mount { path: path.into(), source };
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
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

#[cfg(test)]
mod tests;
