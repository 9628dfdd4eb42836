//! The store of layers on this host.
//!
//! ```text
//! layers/CHAIN    a whole layer, as overlayfs wants it: synced before it was given this name
//! drafts/CHAIN    one that is being made: tree/, work/, merged/
//! runs/NAME       upper/ and work/ of a sandbox, made and locked by its shim
//! ```
//!
//! **A lock says that somebody lives.** Whoever makes a draft or uses a run holds an exclusive `flock` on its directory, which
//! ends with its process however that ends; whoever uses a layer holds a shared one. What has no lock in `drafts` and `runs`
//! is rubbish; what has none in `layers` is kept for the next run, until [`Store::prune`] or until room is needed. Between making a directory and locking it, its maker holds a shared lock on the directory above, which
//! [`Store::sweep`] needs for itself alone.
//!
//! Lock order: the directory above, then what is in it. Nobody waits for a lock while it holds one on a directory above.

mod draft;

use std::{
    ffi::{OsStr, OsString},
    fs::DirBuilder,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
};

use kata_sys::{
    descriptor::is_at,
    jail::{JailError, leave_namespaces},
    removal::remove_tree,
};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, renameat_with},
    io::Errno,
    thread::UnshareFlags,
};

use self::draft::Draft;
use crate::{
    Digest, Image,
    image::{FilesError, ImageError},
    layer::{Budget, LayerError},
    overlay::{self, Overlay},
    reference::Reference,
};

/// Where layers are kept when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/kata/store";

const LAYERS: &str = "layers";
const DRAFTS: &str = "drafts";
const RUNS: &str = "runs";

/// Why the store can't give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something on the host.
    #[error("cannot {attempted} {path}")]
    Host {
        /// What was attempted.
        attempted: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A store that somebody else could write to.
    #[error("the store {0} must belong to the user who runs this, and nobody else may write to it")]
    Foreign(PathBuf),
    /// The image turned out to be wrong.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer can't be applied.
    #[error("layer {number} ({digest})")]
    Layer {
        /// From 1, the lowest.
        number: usize,
        /// Of what comes out of the blob.
        digest: Digest,
        /// Why not.
        source: LayerError,
    },
    /// The namespace in which layers are mounted.
    #[error(transparent)]
    Namespace(#[from] JailError),
    /// The thread that unpacks.
    #[error("unpacking ended unexpectedly")]
    Thread,
}

impl StoreError {
    /// True for what more room would help against: by the budget, or, as with inodes and quotas, by the kernel's word.
    fn wants_room(&self) -> bool {
        let source = match self {
            Self::Layer { source: LayerError::Room(_), .. } => return true,
            Self::Layer { source: LayerError::Entry { source, .. }, .. }
            | Self::Host { source, .. } => source,
            _ => return false,
        };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// The layers of an image, unpacked. They stay as long as this is not dropped.
#[derive(Debug)]
pub struct Layers {
    /// Host paths, the uppermost first.
    pub paths: Vec<PathBuf>,
    /// All of them as one tree, to be looked at.
    pub view: OwnedFd,
    _locks: Vec<OwnedFd>,
}

/// A store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// Opens the store at a path; makes it if need be.
    ///
    /// # Errors
    /// [`StoreError::Host`], [`StoreError::Foreign`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
            host("make the store", path)
        }
        let path = std::path::absolute(path).map_err(failed(path))?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700).recursive(true);
        for path in [&path, &path.join(LAYERS), &path.join(DRAFTS), &path.join(RUNS)] {
            builder.create(path).map_err(failed(path))?;
            let found = std::fs::symlink_metadata(path).map_err(failed(path))?;
            let own = found.uid() == rustix::process::geteuid().as_raw();
            if !own || !found.is_dir() || found.mode() & 0o022 != 0 {
                return Err(StoreError::Foreign(path.clone()));
            }
        }
        Ok(Self { path })
    }

    /// The store at a path, if there is one.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn existing(path: &Path) -> Result<Option<Self>, StoreError> {
        if path.is_dir() { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// Where a sandbox may keep what it writes, to be made by its shim.
    pub fn run(&self, name: &str) -> PathBuf {
        self.path.join(RUNS).join(name)
    }

    /// Finds an image; what it takes to read it is taken where its layers will be. When there is no room, layers that nobody
    /// uses go first.
    ///
    /// # Errors
    /// [`StoreError::Image`]; [`StoreError::Host`] while room is made.
    pub fn find(&self, reference: &Reference) -> Result<Image, StoreError> {
        match Image::find(reference, &self.path) {
            Err(ImageError::Files(FilesError::Room(_))) if self.has_made_room() => {
                Ok(Image::find(reference, &self.path)?)
            }
            found => Ok(found?),
        }
    }

    /// Unpacks the layers of an image that are not there yet. When there is no room, layers that nobody uses go first.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is left that was not whole.
    pub fn unpack(&self, image: &Image) -> Result<Layers, StoreError> {
        // Of its own: what it mounts nobody else sees, and nobody else's root or directory changes.
        thread::scope(|scope| {
            let unpacking = scope.spawn(|| {
                leave_namespaces(UnshareFlags::NEWNS)?;
                self.unpack_here(image)
            });
            unpacking.join().unwrap_or(Err(StoreError::Thread))
        })
    }

    fn unpack_here(&self, image: &Image) -> Result<Layers, StoreError> {
        let room = || {
            Budget::of(self.directory(OsStr::new("."))?)
                .map_err(host("ask for the free space of", &self.path))
        };
        let mut budget = room()?;
        // Lowest first.
        let mut below: Vec<OwnedFd> = Vec::new();
        let mut paths = Vec::new();
        let mut chain: Option<Digest> = None;
        for (number, layer) in (1..).zip(&image.layers) {
            let id = match &chain {
                None => layer.diff_id.clone(),
                Some(chain) => Digest::of(format!("{chain} {}", layer.diff_id).as_bytes()),
            };
            let draft = Draft { store: self, image, layer, number, below: &below };
            let whole = match draft.whole(&id, &mut budget) {
                Err(error) if error.wants_room() && self.has_made_room() => {
                    budget = room()?;
                    draft.whole(&id, &mut budget)
                }
                whole => whole,
            };
            below.push(whole?);
            paths.push(self.path.join(LAYERS).join(file_name(&id)));
            chain = Some(id);
        }
        paths.reverse();
        Ok(Layers { view: self.view(&below)?, paths, _locks: below })
    }

    /// One tree of all layers, read-only.
    fn view(&self, below: &[OwnedFd]) -> Result<OwnedFd, StoreError> {
        if let [only] = below {
            let path = overlay::path_of(only);
            return overlay::detached(&path).map_err(host("take the tree of", &path));
        }
        // Any directory serves: nobody sees what is mounted on it.
        let point = self.path.join(DRAFTS);
        let lower: Vec<_> = below.iter().rev().map(AsFd::as_fd).collect();
        let view = Overlay::mount(&point, &lower, None).and_then(|overlay| overlay.detached());
        view.map_err(host("mount the layers on", &point))
    }

    /// Removes what nobody uses any more: drafts and runs whose owners are gone.
    ///
    /// # Errors
    /// [`StoreError::Host`], after everything was tried.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let mut removed = 0;
        let mut outcome = Ok(());
        for name in [DRAFTS, RUNS] {
            match self.sweep_one(name) {
                Ok(count) => removed += count,
                Err(error) => outcome = Err(error),
            }
        }
        outcome.map(|()| removed)
    }

    fn sweep_one(&self, name: &str) -> Result<usize, StoreError> {
        let path = self.path.join(name);
        let failed = || host("clean up", &path);
        let directory = self.directory(OsStr::new(name))?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            // Somebody is about to lock something in it; another time will do.
            Err(Errno::WOULDBLOCK) => return Ok(0),
            locked => locked.map_err(|error| failed()(error.into()))?,
        }
        let (mut removed, mut outcome) = (0, Ok(()));
        for entry in std::fs::read_dir(&path).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let Ok(found) = open_directory(&directory, &entry.file_name()) else { continue };
            if flock(&found, FlockOperation::NonBlockingLockExclusive).is_ok() {
                match remove_tree(&directory, &entry.file_name()) {
                    Ok(()) => removed += 1,
                    Err(error) => outcome = outcome.and(Err(failed()(error))),
                }
            }
        }
        outcome.map(|()| removed)
    }

    /// Removes the layers that no container uses; says whether there were any. What fails of it is not what the caller wants to
    /// know of.
    fn has_made_room(&self) -> bool {
        self.prune().is_ok_and(|removed| removed > 0)
    }

    /// Removes the layers that no container uses; says how many.
    ///
    /// # Errors
    /// [`StoreError::Host`] of the first that can't be removed, after all were tried.
    pub fn prune(&self) -> Result<usize, StoreError> {
        let path = self.path.join(LAYERS);
        let failed = || host("clean up", &path);
        let layers = self.directory(OsStr::new(LAYERS))?;
        let drafts = self.directory(OsStr::new(DRAFTS))?;
        let (mut removed, mut outcome) = (0, Ok(()));
        for entry in std::fs::read_dir(&path).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let Ok(layer) = open_directory(&layers, &name) else { continue };
            // Between opening and locking it may have been removed, and made anew for somebody.
            if flock(&layer, FlockOperation::NonBlockingLockExclusive).is_err()
                || !is_at(&layer, &layers, &name)
            {
                continue;
            }
            // A name in `layers` means that it is whole, so it loses that name at once, and its files afterwards.
            let mut gone = OsString::from("unused-");
            gone.push(&name);
            match renameat_with(&layers, &name, &drafts, &gone, RenameFlags::NOREPLACE) {
                Ok(()) => match remove_tree(&drafts, &gone) {
                    Ok(()) => removed += 1,
                    Err(error) => outcome = outcome.and(Err(failed()(error))),
                },
                // Somebody else is removing one of this name, or was killed over it, and a sweep gets it.
                Err(Errno::EXIST | Errno::NOENT) => {}
                Err(error) => outcome = outcome.and(Err(failed()(error.into()))),
            }
        }
        outcome.map(|()| removed)
    }

    fn directory(&self, name: &OsStr) -> Result<OwnedFd, StoreError> {
        let path = self.path.join(name);
        open_directory(CWD, path.as_os_str()).map_err(|error| host("open", &path)(error.into()))
    }
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn file_name(id: &Digest) -> String {
    format!("{}-{}", id.algorithm(), id.hex())
}

fn host(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Host { attempted, path, source }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Errno, LayerError, Path, StoreError, host};

    #[test]
    fn a_full_disk_is_want_of_room_whoever_says_so() {
        let entry = |error: Errno| LayerError::Entry {
            path: "a".into(),
            attempted: "write it",
            source: error.into(),
        };
        let layer =
            |source| StoreError::Layer { number: 1, digest: Digest::of(b""), source }.wants_room();
        assert!(layer(LayerError::Room(0)) && !layer(LayerError::Entries));
        for error in [Errno::NOSPC, Errno::DQUOT] {
            assert!(layer(entry(error)));
            assert!(host("make a tree in", Path::new("/"))(error.into()).wants_room());
        }
        assert!(!layer(entry(Errno::ACCESS)));
    }
}
