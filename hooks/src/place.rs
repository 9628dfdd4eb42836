//! Where hooks run: namespaces and a working directory that are not the caller's.

use std::{
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    thread,
};

use kata_sys::jail::{JailError, leave_namespaces};
use rustix::{
    process::chdir,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

/// A place to run something.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Working directory.
    pub directory: &'a Path,
    /// Namespaces of the container's; none is the caller's own.
    pub container: Option<Container<'a>>,
}

/// As much of a container as there is on the host.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// Its network namespace, where it has one.
    pub network: Option<BorrowedFd<'a>>,
}

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A thread to be there.
    #[error("cannot start a thread for hooks")]
    Thread(#[source] io::Error),
    /// Away from where the caller is.
    #[error("cannot leave the caller's {what} for hooks")]
    Leave {
        /// What it shares with the caller's other threads.
        what: &'static str,
        /// What the system said.
        source: JailError,
    },
    /// Into the container's network namespace.
    #[error("cannot enter the network namespace for hooks")]
    Network(#[source] io::Error),
    /// Into the working directory.
    #[error("cannot enter {} for hooks", path.display())]
    Directory {
        /// That directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Does some work in a place, on a thread that is there for it alone.
///
/// In a container's place the mounts are a private copy of the caller's: what the work mounts, the host never sees, and it
/// is gone with the last that refers to it.
///
/// # Errors
/// When the place can't be made; the work is not begun then.
pub fn run_in<T: Send>(place: Place<'_>, work: impl FnOnce() -> T + Send) -> Result<T, PlaceError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("hooks".to_owned()).spawn_scoped(scope, || {
            enter(place)?;
            Ok(work())
        });
        let thread = thread.map_err(PlaceError::Thread)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(place: Place<'_>) -> Result<(), PlaceError> {
    let leave =
        |flags, what| leave_namespaces(flags).map_err(|source| PlaceError::Leave { what, source });
    // Threads share their working directory until one leaves it.
    leave(UnshareFlags::FS, "working directory")?;
    if let Some(container) = place.container {
        leave(UnshareFlags::NEWNS, "mounts")?;
        if let Some(network) = container.network {
            move_into_link_name_space(network, Some(LinkNameSpaceType::Network))
                .map_err(|errno| PlaceError::Network(errno.into()))?;
        }
    }
    chdir(place.directory).map_err(|errno| PlaceError::Directory {
        path: place.directory.to_owned(),
        source: errno.into(),
    })
}
