//! Makes a layer: in a draft, which gets its name in `layers` when it is whole.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use kata_sys::{descriptor::is_at, removal::remove_tree};
use rustix::{
    fs::{
        CWD, FlockOperation, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, fchmod, fchown,
        flock, fstat, fsync, futimens, mkdirat, renameat_with, syncfs,
    },
    io::Errno,
};

use super::{DRAFTS, LAYERS, Store, StoreError, file_name, host, open_directory};
use crate::{
    Digest, Image,
    digest::Summed,
    image::{FilesError, ImageError, Layer, check_size, check_sum},
    layer::{Budget, LayerError, Plain, apply},
    overlay::{Overlay, Writable},
};

/// A layer that is wanted, and perhaps has to be made.
pub(super) struct Draft<'a> {
    pub(super) store: &'a Store,
    pub(super) image: &'a Image,
    pub(super) layer: &'a Layer,
    pub(super) number: usize,
    /// Lowest first.
    pub(super) below: &'a [OwnedFd],
}

impl Draft<'_> {
    /// The whole layer, locked for use. Of several that want the same one makes it, and the others wait.
    pub(super) fn whole(&self, id: &Digest, budget: &mut Budget) -> Result<OwnedFd, StoreError> {
        let name = file_name(id);
        let layers = self.store.directory(OsStr::new(LAYERS))?;
        let drafts = self.store.directory(OsStr::new(DRAFTS))?;
        let path = self.store.path.join(DRAFTS).join(&name);
        let failed = |attempted| {
            let path = path.clone();
            move |error: Errno| StoreError::Host { attempted, path, source: error.into() }
        };
        loop {
            if let Some(whole) = used(&layers, &name).map_err(failed("lock the layer of"))? {
                return Ok(whole);
            }
            let Some(draft) = claimed(&drafts, &name).map_err(failed("lock"))? else { continue };
            // Whoever made it may have finished while we waited.
            if used(&layers, &name).map_err(failed("lock the layer of"))?.is_none() {
                let made = self.make(&draft, &path, budget).and_then(|()| {
                    let flags = RenameFlags::NOREPLACE;
                    renameat_with(&draft, "tree", &layers, name.as_str(), flags)
                        .map_err(failed("keep"))?;
                    fsync(&layers).map_err(failed("keep"))
                });
                if made.is_err() {
                    // The failure that led here is the one that is told; the next sweep gets what is left.
                    remove_tree(&drafts, OsStr::new(&name)).ok();
                }
                made?;
            }
            remove_tree(&drafts, OsStr::new(&name)).map_err(host("remove", &path))?;
        }
    }

    /// Fills the draft's `tree`, up to the last byte on the disk.
    fn make(&self, draft: &OwnedFd, path: &Path, budget: &mut Budget) -> Result<(), StoreError> {
        let failed = |attempted| {
            move |error: Errno| StoreError::Host {
                attempted,
                path: path.to_owned(),
                source: error.into(),
            }
        };
        for name in ["tree", "work", "merged"] {
            // Left by one that was killed.
            remove_tree(draft, OsStr::new(name)).map_err(host("empty", path))?;
            mkdirat(draft, name, Mode::RWXU).map_err(failed("make a tree in"))?;
        }
        let open = |name: &str| open_directory(draft, OsStr::new(name)).map_err(failed("open"));
        let tree = open("tree")?;
        match self.below.last() {
            Some(parent) => resemble(&tree, parent).map_err(failed("make a tree in"))?,
            None => fchmod(&tree, Mode::from_raw_mode(0o755)).map_err(failed("make a tree in"))?,
        }
        if self.below.is_empty() {
            self.pour(&tree, budget)?;
        } else {
            let (work, point) = (open("work")?, path.join("merged"));
            let lower: Vec<_> = self.below.iter().rev().map(AsFd::as_fd).collect();
            let writable = Writable { upper: tree.as_fd(), work: work.as_fd() };
            let overlay = Overlay::mount(&point, &lower, Some(&writable))
                .map_err(host("mount the layers on", &point))?;
            let merged = open_directory(CWD, point.as_os_str()).map_err(failed("open"))?;
            self.pour(&merged, budget)?;
            drop((merged, overlay));
        }
        syncfs(&tree).map_err(failed("write back"))
    }

    /// Checks the blob, then applies it, then checks what came out of it.
    fn pour(&self, root: &OwnedFd, budget: &mut Budget) -> Result<(), StoreError> {
        let Layer { name, digest, size, diff_id } = self.layer;
        let wrong = |source: LayerError| StoreError::Layer {
            number: self.number,
            digest: diff_id.clone(),
            source,
        };
        let read = |source| ImageError::Files(FilesError::Read { name: name.clone(), source });
        let files = &self.image.files;
        let (blob, has) = files.find(name).map_err(ImageError::Files)?;
        if let Some(digest) = digest {
            check_size(digest, size.unwrap_or(has), has)?;
            // In a pass of its own: what is known to be damaged is not taken apart.
            let (sum, _) = Summed::new(blob, Some(digest)).finish().map_err(read)?;
            check_sum(digest, sum)?;
        }
        let (blob, _) = files.find(name).map_err(ImageError::Files)?;
        let archive = |error: io::Error| wrong(LayerError::Archive(error.to_string()));
        let plain = budget.bound(Plain::new(blob).map_err(archive)?);
        let rest = apply(Summed::new(plain, Some(diff_id)), root.as_fd(), budget).map_err(wrong)?;
        let (sum, _) = rest.finish().map_err(archive)?;
        match sum {
            Some(sum) if sum != *diff_id => Err(wrong(LayerError::Sum(sum))),
            _ => Ok(()),
        }
    }
}

/// A layer, with a lock that keeps it; none when it is not whole yet.
fn used(layers: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, Errno> {
    match open_directory(layers, OsStr::new(name)) {
        Err(Errno::NOENT) => Ok(None),
        layer => {
            let layer = layer?;
            flock(&layer, FlockOperation::LockShared)?;
            Ok(is_at(&layer, layers, name).then_some(layer))
        }
    }
}

/// A draft, with a lock that nobody else has; none when it was taken away while we waited for it.
fn claimed(drafts: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, Errno> {
    flock(drafts, FlockOperation::LockShared)?;
    let claimed = match mkdirat(drafts, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_directory(drafts, OsStr::new(name)),
        Err(error) => Err(error),
    };
    let claimed =
        claimed.and_then(|draft| match flock(&draft, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok((draft, true)),
            Err(Errno::WOULDBLOCK) => Ok((draft, false)),
            Err(error) => Err(error),
        });
    flock(drafts, FlockOperation::Unlock)?;
    let draft = match claimed {
        // Swept right before it was opened.
        Err(Errno::NOENT) => return Ok(None),
        claimed => claimed?,
    };
    if !draft.1 {
        flock(&draft.0, FlockOperation::LockExclusive)?;
    }
    Ok(is_at(&draft.0, drafts, name).then_some(draft.0))
}

/// The root of an overlay is that of its upper part: it gets what the layer below has.
fn resemble(tree: &OwnedFd, parent: &OwnedFd) -> Result<(), Errno> {
    let stat = fstat(parent)?;
    fchown(tree, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(tree, Mode::from_raw_mode(stat.st_mode))?;
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds };
    futimens(tree, &Timestamps { last_access: time, last_modification: time })
}
