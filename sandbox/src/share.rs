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

use std::{
    ffi::CStr,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_sys::mount_attr::{self, MountAttributes, Reach};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, unlinkat},
    io::Errno,
    mount::{
        MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount,
        mount_change, move_mount, unmount,
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
    roots: Half,
    volumes: Half,
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
        Ok(Self { path: path.into(), root, roots, volumes })
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
        let name = number.to_string();
        let place = match kind {
            VolumeKind::Directory => self.volumes.make_directory(&name)?,
            VolumeKind::File => self.volumes.make_file(&name)?,
        };
        self.volumes.attach(tree, &name, &place)
    }

    /// Takes a container's root file system and its volumes away again. What is not there is no error.
    ///
    /// # Errors
    /// [`ShareError::Detach`].
    pub fn detach(&self, id: &str, volumes: Range<usize>) -> Result<(), ShareError> {
        self.roots.detach(id)?;
        volumes.into_iter().try_for_each(|number| self.volumes.detach(&number.to_string()))
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
mod tests {
    use std::{
        fs,
        os::{fd::OwnedFd, unix::fs::symlink},
        path::{Path, PathBuf},
    };

    use rustix::{
        fs::CWD,
        mount::{OpenTreeFlags, open_tree},
        thread::UnshareFlags,
    };

    use super::{SharedTree, VolumeKind};
    use crate::step::Steps;

    /// Runs `inside` with a tree of its own, in a mount namespace of its own.
    fn with_tree(inside: impl FnOnce(&SharedTree, &Path, &Path) + Send) {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let [shared, host] = ["shared", "host"].map(|name| scratch.path().join(name));
        fs::create_dir(&host).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
                let tree = SharedTree::mount(&shared, &Steps::from_environment()).unwrap();
                inside(&tree, &shared, &host);
                tree.unmount().unwrap();
            });
        });
    }

    fn detached(path: &Path) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, path, flags).unwrap()
    }

    fn names(path: impl AsRef<Path>) -> Vec<PathBuf> {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
    }

    #[test]
    fn what_is_attached_is_there_until_it_is_detached() {
        with_tree(|tree, shared, host| {
            let steps = Steps::from_environment();
            fs::write(host.join("file"), "of the host").unwrap();
            tree.attach_root("c1", detached(host), &steps).unwrap();
            tree.attach_volume(0, VolumeKind::Directory, detached(host), &steps).unwrap();
            tree.attach_volume(1, VolumeKind::File, detached(&host.join("file")), &steps).unwrap();
            tree.mount_root("c2", "tmpfs", c"mode=0700", &steps).unwrap();
            for path in ["roots/c1/file", "volumes/0/file", "volumes/1"] {
                assert_eq!(fs::read_to_string(shared.join(path)).unwrap(), "of the host");
            }
            fs::write(shared.join("roots/c2/file"), "of its own").unwrap();
            tree.detach("c1", 0..2).unwrap();
            tree.detach("c1", 0..2).unwrap();
            tree.detach("c2", 0..0).unwrap();
            assert!(
                names(shared.join("roots")).is_empty() && names(shared.join("volumes")).is_empty()
            );
            assert_eq!(names(host), [PathBuf::from("file")]);
        });
    }

    #[test]
    fn a_tree_that_leads_to_the_host_is_not_followed() {
        with_tree(|tree, shared, host| {
            let steps = Steps::from_environment();
            fs::create_dir(host.join("c1")).unwrap();
            fs::write(host.join("7"), "of the host").unwrap();
            for half in ["roots", "volumes"] {
                fs::rename(shared.join(half), shared.join("away")).unwrap();
                symlink(host, shared.join(half)).unwrap();
                fs::rename(shared.join("away"), shared.join(format!("old-{half}"))).unwrap();
            }
            tree.attach_root("c2", detached(host), &steps).unwrap();
            tree.mount_root("c3", "tmpfs", c"", &steps).unwrap();
            tree.attach_volume(0, VolumeKind::Directory, detached(host), &steps).unwrap();
            tree.attach_volume(1, VolumeKind::File, detached(&host.join("7")), &steps).unwrap();
            tree.detach("c1", 7..8).unwrap();
            let mut left = names(host);
            left.sort();
            assert_eq!(left, ["7", "c1"].map(PathBuf::from));
            assert_eq!(names(shared.join("old-volumes")).len(), 2);
        });
    }

    #[test]
    fn a_link_in_the_place_of_a_new_volume_is_no_place() {
        with_tree(|tree, shared, host| {
            let steps = Steps::from_environment();
            symlink(host, shared.join("volumes/0")).unwrap();
            symlink(host.join("new"), shared.join("volumes/1")).unwrap();
            tree.attach_volume(0, VolumeKind::Directory, detached(host), &steps).unwrap_err();
            tree.attach_volume(1, VolumeKind::File, detached(host), &steps).unwrap_err();
            assert!(names(host).is_empty());
        });
    }
}
