//! The end of a group, and of what is in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::CgroupError;

/// A killed process is gone within milliseconds; this catches one stuck in the kernel.
const DEATH: Duration = Duration::from_secs(5);

/// Between two looks at a group that is not empty yet.
const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Removes a group that has neither processes nor groups; leaves one that has.
///
/// # Errors
/// [`CgroupError::Remove`].
pub fn remove_unused(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(())
        }
        removed => removed.map_err(|source| CgroupError::Remove { path: path.into(), source }),
    }
}

/// Kills what is left in a group and the groups below it, and removes them. Succeeds when it is gone already.
///
/// # Errors
/// [`CgroupError::Remove`] when a process survives SIGKILL.
pub fn remove(path: &Path) -> Result<(), CgroupError> {
    remove_by(path, Instant::now() + DEATH)
}

/// The same in several places, which have no more time together.
///
/// # Errors
/// The first [`CgroupError`], after all were tried.
pub fn remove_all(paths: impl Iterator<Item = PathBuf>) -> Result<(), CgroupError> {
    let deadline = Instant::now() + DEATH;
    paths.map(|path| remove_by(&path, deadline)).fold(Ok(()), Result::and)
}

fn remove_by(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CgroupError::List { path: path.into(), source }),
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_by(&child.path(), deadline)?;
        }
    }
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source)
                if source.raw_os_error() != Some(libc_ebusy()) || Instant::now() > deadline =>
            {
                return Err(CgroupError::Remove { path: path.into(), source });
            }
            Err(_) => kill_all(path),
        }
    }
}

fn libc_ebusy() -> i32 {
    rustix::io::Errno::BUSY.raw_os_error()
}

/// SIGKILL to every process of the group, and waits a moment for their death; as long if there is none that can be seen.
fn kill_all(path: &Path) {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let pids = procs.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw);
    let mut dying = Vec::new();
    for pidfd in pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        if let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL) {
            tracing::debug!(%error, "process of the group died by itself");
        }
        dying.push(pidfd);
    }
    // The last to be told is the last to die, mostly.
    let mut last: Vec<PollFd<'_>> =
        dying.last().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).into_iter().collect();
    if let Err(error) = poll(&mut last, Some(&MOMENT)) {
        tracing::debug!(%error, "wait for a killed process");
    }
}
