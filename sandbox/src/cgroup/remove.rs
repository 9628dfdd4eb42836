//! The end of a group, and of what is in it.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::CgroupError;

/// A killed process is gone within milliseconds; this catches one stuck in the kernel.
const DEATH: Duration = Duration::from_secs(5);

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
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CgroupError::List { path: path.into(), source }),
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path())?;
        }
    }
    let deadline = Instant::now() + DEATH;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source)
                if source.raw_os_error() != Some(libc_ebusy()) || Instant::now() > deadline =>
            {
                return Err(CgroupError::Remove { path: path.into(), source });
            }
            // A process that can't be seen from here, or that has just come.
            Err(_) if !kill_all(path) => std::thread::yield_now(),
            Err(_) => {}
        }
    }
}

fn libc_ebusy() -> i32 {
    rustix::io::Errno::BUSY.raw_os_error()
}

/// SIGKILL to every process of the group, and waits until they are dead (or `DEATH` is over); says whether there was one.
fn kill_all(path: &Path) -> bool {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let pids = procs.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw);
    let mut dying = Vec::new();
    for pidfd in pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        if let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL) {
            tracing::debug!(%error, "process of the group died by itself");
        }
        dying.push(pidfd);
    }
    for pidfd in &dying {
        let mut poll = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        if let Err(error) = rustix::event::poll(&mut poll, Some(&timeout)) {
            tracing::debug!(%error, "wait for a killed process");
        }
    }
    !dying.is_empty()
}
