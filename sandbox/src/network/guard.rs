//! What Kata may touch: the one place where that is decided.
//!
//! A [`Claim`] is taken on a namespace before anything in it is changed, and held as long as the sandbox uses it. It is a
//! lock on the namespace itself, which the kernel releases with its last descriptor. Those that only set something there, or take
//! something away, have it together for that moment.
//!
//! **Invariant**: nothing is touched in the namespace of PID 1 or of this process (which is that of the calling engine), nor in
//! one in which a process of another container lives, nor in one that another sandbox has claimed.
//! A process is a container's when its pid namespace or its root directory is not this process's; so a helper of an engine and
//! an admin's shell are none. Monitors, which show what they stand for, are known by their program's name, as that of a sandbox older
//! than an upgrade is another file, or none any more; another sandbox's has a claim beside it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use kata_config::Artefact;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, stat},
    io::Errno,
};
use thiserror::Error;

/// Why a namespace is left alone.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum GuardError {
    #[error(
        "this is the host's own network namespace ({whose} lives in it), in which Kata touches nothing"
    )]
    Host { whose: &'static str },
    #[error(
        "process {pid} ({name}) of another container lives in this network namespace, in which Kata therefore touches nothing"
    )]
    Shared { pid: u32, name: String },
    #[error("another sandbox has this network namespace")]
    Claimed,
    #[error("the sandbox is going")]
    Released,
    #[error("look at {path}")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("lock the network namespace")]
    Lock(#[source] io::Error),
}

/// Device and inode: what a file of `/proc` refers to.
pub type Identity = (u64, u64);

/// The right to change a namespace. Dropping it gives it up.
#[derive(Debug)]
pub struct Claim {
    namespace: OwnedFd,
    identity: Identity,
    released: AtomicBool,
}

impl Claim {
    /// Claims a namespace.
    ///
    /// # Errors
    /// [`GuardError::Claimed`] when another sandbox has it.
    pub fn take(namespace: impl AsFd) -> Result<Self, GuardError> {
        Self::lock(namespace, FlockOperation::NonBlockingLockExclusive)
    }

    /// Keeps a namespace from being claimed, for a moment, as any number may at once: what they find claimed a sandbox has. One that
    /// comes to claim it in that moment is refused.
    ///
    /// # Errors
    /// [`GuardError::Claimed`] when a sandbox has it.
    pub fn visit(namespace: impl AsFd) -> Result<Self, GuardError> {
        Self::lock(namespace, FlockOperation::NonBlockingLockShared)
    }

    fn lock(namespace: impl AsFd, operation: FlockOperation) -> Result<Self, GuardError> {
        // A lock belongs to an open file: an own one, or whoever shares the descriptor would have the claim too.
        let path = format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd());
        let namespace = openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| GuardError::Look { path: path.into(), source: e.into() })?;
        match flock(&namespace, operation) {
            Err(Errno::WOULDBLOCK) => Err(GuardError::Claimed),
            Err(e) => Err(GuardError::Lock(e.into())),
            Ok(()) => {
                let stat = fstat(&namespace).map_err(|e| GuardError::Lock(e.into()))?;
                let identity = (stat.st_dev, stat.st_ino);
                Ok(Self { namespace, identity, released: AtomicBool::new(false) })
            }
        }
    }

    /// Gives the namespace up, whoever else holds the claim; from then on nothing may be touched.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
        // A child that is being started may have a copy of the descriptor for a moment; the lock must not live in it.
        if let Err(error) = flock(&self.namespace, FlockOperation::Unlock) {
            tracing::debug!(%error, "give a network namespace up");
        }
    }

    /// Whether the namespace may be touched, as things are now.
    ///
    /// # Errors
    /// [`GuardError`] says whose it is.
    pub fn check(&self) -> Result<(), GuardError> {
        if self.released.load(Ordering::Relaxed) {
            return Err(GuardError::Released);
        }
        for (path, whose) in [("/proc/1/ns/net", "PID 1"), ("/proc/self/ns/net", "Kata's shim")] {
            match identity(Path::new(path)) {
                Ok(found) if found == self.identity => return Err(GuardError::Host { whose }),
                Ok(_) => {}
                // An init with more capabilities than ours may not be looked at.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                Err(source) => return Err(GuardError::Look { path: path.into(), source }),
            }
        }
        match self.tenant()? {
            Some((pid, name)) => Err(GuardError::Shared { pid, name }),
            None => Ok(()),
        }
    }

    /// A process of a container that lives in the namespace.
    fn tenant(&self) -> Result<Option<(u32, String)>, GuardError> {
        let look = |path: &str| {
            identity(Path::new(path))
                .map_err(|source| GuardError::Look { path: path.into(), source })
        };
        let ours = [look("/proc/self/ns/pid")?, look("/proc/self/root")?];
        let processes = fs::read_dir("/proc")
            .map_err(|source| GuardError::Look { path: "/proc".into(), source })?;
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let path = process.path();
            // One that has ended meanwhile lives nowhere.
            if identity(&path.join("ns/net")).ok() != Some(self.identity) {
                continue;
            }
            let theirs = ["ns/pid", "root"].map(|name| identity(&path.join(name)).ok());
            if theirs != ours.map(Some) && !is_monitor(&path) && path.join("ns/net").exists() {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                return Ok(Some((pid, name.trim().to_owned())));
            }
        }
        Ok(None)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a process runs a monitor's program, of whichever version.
fn is_monitor(process: &Path) -> bool {
    let Ok(program) = fs::read_link(process.join("exe")) else { return false };
    let name = program.file_name().unwrap_or_default().as_bytes();
    // As the kernel shows one that was replaced.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    let monitor = Path::new(Artefact::Monitor.relative_path()).file_name();
    monitor.is_some_and(|monitor| monitor.as_bytes() == name)
}

fn identity(path: &Path) -> io::Result<Identity> {
    let stat = stat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{Claim, GuardError};

    #[test]
    fn the_namespace_of_this_process_is_the_hosts() {
        let namespace = File::open("/proc/self/ns/net").unwrap();
        let claim = Claim::take(&namespace).unwrap();
        let refused = claim.check().unwrap_err();
        assert!(matches!(refused, GuardError::Host { .. }), "{refused}");
        // In the same test: the namespace is that of every test of this program.
        assert!(matches!(Claim::take(&namespace), Err(GuardError::Claimed)));
        assert!(matches!(Claim::visit(&namespace), Err(GuardError::Claimed)));
        drop(claim);
        // Two that have it for a moment are not in each other's way.
        let visits = [Claim::visit(&namespace).unwrap(), Claim::visit(&namespace).unwrap()];
        assert!(matches!(Claim::take(&namespace), Err(GuardError::Claimed)));
        drop(visits);
        Claim::take(&namespace).unwrap();
    }
}
