//! A root of an image's layers: an overlay whose lower part is shared by all who run the image, and whose upper part is the
//! sandbox's own and goes with it.
//!
//! The upper part is on a disk, in a directory that the ledger names before it is made, and on which this process holds a lock for
//! as long as it lives. So `delete` finds it by the ledger, and who looks after the disk knows by the lock what nobody uses
//! any more, also after a reboot that took the ledger along.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        CWD, FlockOperation, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, flock,
        fstat, futimens, mkdirat, openat,
    },
    io::Errno,
};
use thiserror::Error;

use crate::{
    ledger::{Entry, Ledger, LedgerError},
    share::{ShareError, SharedTree},
    step::{InjectedFault, Step, Steps},
};

/// What the root is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// Host paths, the uppermost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Host path of the directory for what the sandbox writes; it is not there yet, and the one above it is.
    pub writable: PathBuf,
}

/// Why layers could not be made a root.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LayersError {
    #[error("use the layer {path}")]
    Lower {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("make {path} for what the container writes")]
    Writable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

impl Layers {
    /// All that has to be in sight of whoever mounts them, and of whoever takes them away.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lower.iter().chain([&self.writable])
    }

    /// Mounts them as the root of a container. What is returned holds the locks.
    ///
    /// # Errors
    /// [`LayersError`]; what was made is in the ledger.
    pub(crate) fn attach(
        &self,
        id: &str,
        tree: &SharedTree,
        (ledger, steps): (&Ledger, &Steps),
    ) -> Result<Vec<OwnedFd>, LayersError> {
        let mut locks = Vec::new();
        for path in &self.lower {
            locks.push(used(path).map_err(|error| LayersError::Lower {
                path: path.clone(),
                source: error.into(),
            })?);
        }
        ledger.intend(steps, &Entry::Directory { path: self.writable.clone() })?;
        steps.enter(Step::MakeWritable)?;
        let writable = make(&self.writable, &locks).map_err(|error| LayersError::Writable {
            path: self.writable.clone(),
            source: error.into(),
        })?;
        // Descriptors are short, and a mount has room for one page of options.
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let lower: Vec<String> = locks.iter().map(path).collect();
        let (upper, work) = (path(&writable.upper), path(&writable.work));
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
        // No path of a descriptor has a zero byte.
        let options = CString::new(options).unwrap_or_default();
        tree.mount_root(id, "overlay", &options, steps)?;
        locks.push(writable.lock);
        Ok(locks)
    }
}

/// A layer, with a lock that keeps it.
fn used(path: &Path) -> Result<OwnedFd, Errno> {
    let layer = open(CWD, path)?;
    flock(&layer, FlockOperation::LockShared)?;
    Ok(layer)
}

struct Writable {
    lock: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
}

/// Makes and locks the directory. Until both are done, a lock on the one above keeps off who looks after it.
fn make(path: &Path, lower: &[OwnedFd]) -> Result<Writable, Errno> {
    let above = open(CWD, path.parent().unwrap_or(Path::new("/")))?;
    flock(&above, FlockOperation::LockShared)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    mkdirat(&above, name, Mode::RWXU)?;
    let lock = open(&above, Path::new(name))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    flock(&above, FlockOperation::Unlock)?;
    for name in ["upper", "work"] {
        mkdirat(&lock, name, Mode::RWXU)?;
    }
    let upper = open(&lock, Path::new("upper"))?;
    // The root of an overlay is that of its upper part: it gets what the uppermost layer has.
    let stat = fstat(lower.first().ok_or(Errno::INVAL)?)?;
    fchown(&upper, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(&upper, Mode::from_raw_mode(stat.st_mode))?;
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds };
    futimens(&upper, &Timestamps { last_access: time, last_modification: time })?;
    Ok(Writable { upper, work: open(&lock, Path::new("work"))?, lock })
}

fn open(parent: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rustix::fs::{FlockOperation, flock};

    use super::{make, used};

    #[test]
    fn the_writable_part_is_locked_and_its_root_is_like_the_uppermost_layers() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = scratch.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::set_permissions(&layer, PermissionsExt::from_mode(0o751)).unwrap();
        let lower = [used(&layer).unwrap()];
        let path = scratch.path().join("run");
        let writable = make(&path, &lower).unwrap();
        let mode = fs::metadata(path.join("upper")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751);
        let another = fs::File::open(&path).unwrap();
        let lock = || flock(&another, FlockOperation::NonBlockingLockExclusive);
        assert!(lock().is_err());
        drop(writable);
        assert!(lock().is_ok());
        assert!(make(&path, &lower).is_err());
    }
}
