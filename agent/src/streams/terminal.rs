//! The master of a process's terminal.
//!
//! When the process ends, what it has written may still be in the kernel's buffers, which tell their length to nobody.
//! [`Terminal::settle`] therefore takes all of it out into memory (the kernel holds at most a few dozen KiB), so that the
//! count that goes with the end is exact, however slow the host reads.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kata_sys::watch;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use super::Counter;
use crate::order::TerminalSize;

/// More than the kernel buffers for one terminal; what a process left behind writes meanwhile is left where it is.
const MAX_BACKLOG: usize = 256 * 1024;

/// The agent's end of a terminal.
#[derive(Debug)]
pub struct Terminal {
    master: AsyncFd<OwnedFd>,
    counter: Counter,
    /// Taken out when the process ended, not yet sent.
    backlog: Mutex<Vec<u8>>,
    settled: Notify,
}

impl Terminal {
    /// Takes the master over.
    pub fn new(master: OwnedFd, counter: Counter) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let master = watch::watch(master, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { master, counter, backlog: Mutex::default(), settled: Notify::new() })
    }

    /// Tells the process its new size (SIGWINCH is the kernel's doing).
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// What the process has written; `None` when nobody has the terminal open any more.
    pub(super) async fn read(&self, most: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; most];
        loop {
            let backlog = std::mem::take(&mut *self.backlog());
            if !backlog.is_empty() {
                return Some(backlog);
            }
            let mut guard = tokio::select! {
                guard = self.master.readable() => guard.ok()?,
                () = self.settled.notified() => continue,
            };
            // Both may have come: what was taken out is older than what can be read, and than the end.
            if !self.backlog().is_empty() {
                continue;
            }
            let read = guard.try_io(|master| Ok(rustix::io::read(master.as_fd(), &mut buffer)?));
            match read {
                // EIO is how a master says that its last slave is closed.
                Ok(Ok(0) | Err(_)) => return None,
                Ok(Ok(length)) => {
                    self.counter.add(length);
                    buffer.truncate(length);
                    return Some(buffer);
                }
                Err(_would_block) => {}
            }
        }
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.master.writable().await?;
            if let Ok(written) = guard.try_io(|it| Ok(rustix::io::write(it.as_fd(), bytes)?)) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Takes out and counts all that was written until now.
    pub fn settle(&self) {
        let mut buffer = [0; 4096];
        let mut backlog = self.backlog();
        while backlog.len() < MAX_BACKLOG {
            // Poll, unlike read, first waits for the kernel to move what it has to where it can be read.
            let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if !matches!(poll(&mut polled, Some(&now)), Ok(1..)) {
                break;
            }
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(length @ 1..) => {
                    self.counter.add(length);
                    backlog.extend_from_slice(buffer.get(..length).unwrap_or_default());
                }
                _ => break,
            }
        }
        drop(backlog);
        self.settled.notify_one();
    }

    fn backlog(&self) -> MutexGuard<'_, Vec<u8>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, os::fd::OwnedFd, pin::pin, task::Context};

    use rustix::{
        fs::{Mode, OFlags, open},
        io::write,
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    };

    use super::Terminal;
    use crate::streams::Counter;

    fn pair() -> (Terminal, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (Terminal::new(master, Counter::default()).unwrap(), slave)
    }

    #[tokio::test]
    async fn what_was_taken_out_is_read_before_the_end() {
        // Which of two events is seen first is a matter of chance.
        for _ in 0..20 {
            let (terminal, slave) = pair();
            let mut reading = pin!(terminal.read(64));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(reading.as_mut().poll(&mut context).is_pending());
            write(&slave, b"last").unwrap();
            drop(slave);
            drop(terminal.master.readable().await.unwrap());
            terminal.settle();
            assert_eq!(reading.await.as_deref(), Some(&b"last"[..]));
            assert_eq!(terminal.read(64).await, None);
        }
    }
}
