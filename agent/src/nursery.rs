//! The agent's way to a new [`helper`].
//!
//! ```text
//! agent ── starts, once ─► nursery ── copies itself, once a process ─► helper (a child of the agent)
//!   └── streams + control socket ─► ┘
//! ```
//!
//! A copy of a small process that has nothing to load is much cheaper than a start of the agent's program. The nursery hears
//! nothing of what its copies are to make, and joins nothing: each copy is as good as a new process.

use std::{
    ffi::CString,
    io::{
        self,
        ErrorKind::{BrokenPipe, ConnectionReset},
    },
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use kata_sys::{scm, spawn::Spawn};
use rustix::{
    fs::{Mode, OFlags},
    io::ioctl_fionbio,
    stdio::stderr,
};

use crate::{
    helper,
    order::{Failure, Step},
};

/// What one packet asks for. Files: standard input, output and error of the process to be, and the helper's control socket.
pub const HELPER: &[u8] = b"h";

/// The agent's end of the nursery's socket, once there is one.
#[derive(Debug, Default)]
pub struct Nursery(Mutex<Option<OwnedFd>>);

impl Nursery {
    /// Has a helper made with these standard streams that takes its order from `control`.
    pub fn make(&self, streams: &[OwnedFd; 3], control: &OwnedFd) -> Result<(), Failure> {
        let [stdin, stdout, stderr] = streams;
        let files = [stdin, stdout, stderr, control].map(AsFd::as_fd);
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            match scm::send(socket, HELPER, &files) {
                Err(error) if is_gone(&error) => {}
                // One that is too far behind is there all the same: only this helper fails.
                sent => return sent.step(|| "ask for a helper"),
            }
        }
        // The first, or the last one was killed.
        let new = start().step(|| "start the nursery of helpers")?;
        scm::send(&new, HELPER, &files).step(|| "ask for a helper")?;
        *socket = Some(new);
        Ok(())
    }
}

/// Whether the other end is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

fn start() -> io::Result<OwnedFd> {
    let (near, far) = scm::packet_pair()?;
    // The agent's only thread waits for nobody.
    ioctl_fionbio(&near, true)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut spawn = Spawn::new(CString::from(c"/proc/self/exe"));
    spawn.arguments = [c"kata-agent".into(), CString::new(helper::ARGUMENT)?].into();
    let console: BorrowedFd<'_> = stderr();
    spawn.fds = vec![null.as_fd(), null.as_fd(), console, far.as_fd()];
    // Its end is the reaper's business, and shows when the next helper is asked for.
    spawn.start().map_err(io::Error::other)?;
    Ok(near)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kata_sys::scm;
    use rustix::io::ioctl_fionbio;

    use super::{HELPER, Nursery, is_gone};

    #[test]
    fn a_nursery_that_was_killed_is_gone_whether_or_not_it_was_behind() {
        for behind in [false, true] {
            let (near, far) = scm::packet_pair().unwrap();
            if behind {
                scm::send(&near, HELPER, &[]).unwrap();
            }
            drop(far);
            assert!(is_gone(&scm::send(&near, HELPER, &[]).unwrap_err()), "{behind}");
        }
    }

    #[test]
    fn a_nursery_that_is_behind_fails_one_helper_and_is_kept() {
        let (near, far) = scm::packet_pair().unwrap();
        ioctl_fionbio(&near, true).unwrap();
        let nursery = Nursery(Mutex::new(Some(near)));
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let (streams, control) = ([file(), file(), file()], file());
        let failure = loop {
            if let Err(failure) = nursery.make(&streams, &control) {
                break failure;
            }
        };
        assert!(failure.message.starts_with("ask for a helper: "), "{failure}");
        let packet = scm::receive(&far).unwrap();
        assert_eq!((&packet.bytes[..], packet.fds.len()), (HELPER, 4));
        nursery.make(&streams, &control).unwrap();
    }
}
