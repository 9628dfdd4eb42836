//! Bytes between the engine's descriptors and the guest's streams, one thread a direction.
//!
//! ```text
//! engine's fd 0 ──► stdin stream      end of input: half-close of the stream
//! stdout stream ──► engine's fd 1     end of stream: our end of fd 1 is closed; reader gone: our end of the stream is
//! stderr stream ──► engine's fd 2     the same
//! ```
//!
//! Threads, because O_NONBLOCK belongs to the open file and not to the descriptor: set on what the engine gave us it
//! would break whoever shares it (a person's shell). A thread may block for ever; it ends with the process, which nobody
//! but the main thread decides. The guest's streams are nobody else's, and are non-blocking: splice(2) holds the lock of
//! its pipe while it waits for a socket, and an engine that touched the other end of that pipe would hang, for as long as
//! a guest likes to be silent.
//!
//! What a full disk behind stdout does not take is lost, as under runc, and the program goes on.
//!
//! When the reader of stdout is gone, a container under runc gets SIGPIPE. Here the stream is shut down for reading, so
//! that the guest's next write fails the same way, as soon as what is in flight is thrown away.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{FileType, fstat},
    io::{Errno, ioctl_fionbio, read, write},
    net::Shutdown,
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::crew::Crew;

/// What one read or write moves where splice(2) can't.
const BLOCK: usize = 64 * 1024;

/// Most that one splice(2) moves; a pipe holds less.
const SPLICE: usize = 1024 * 1024;

/// Wakes the main thread when a flow has news that it waits for.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    /// Ring at every step, not only at the end of a flow.
    eager: AtomicBool,
}

impl Bell {
    /// A bell that rings when a flow ends.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, eager: AtomicBool::new(false) })
    }

    /// From now on each step of a flow rings: the process has ended and its bytes are counted.
    pub fn ring_at_every_step(&self) {
        self.eager.store(true, Ordering::SeqCst);
    }

    /// Makes the bell silent until the next ring.
    pub fn hush(&self) {
        // EAGAIN: it had not rung. There is no other error.
        read(&self.event, &mut [0; 8]).ok();
    }

    /// Makes the bell audible until it is hushed.
    pub fn ring(&self) {
        // EAGAIN: it rings already, 2^64 - 1 times.
        write(&self.event, &1_u64.to_ne_bytes()).ok();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// How far a flow from the guest is.
#[derive(Debug, Default)]
pub struct Progress {
    passed: AtomicU64,
    over: AtomicBool,
}

impl Progress {
    /// True when nothing more will come.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// True when at least `count` bytes were handed on, or nothing more will come.
    pub fn has_passed(&self, count: u64) -> bool {
        self.is_over() || self.passed.load(Ordering::SeqCst) >= count
    }
}

/// The engine's end of a flow: one of the standard streams.
#[derive(Debug, Clone, Copy)]
pub enum Standard {
    /// What the container reads.
    Stdin,
    /// What it writes.
    Stdout,
    /// What it complains.
    Stderr,
}

impl Standard {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Self::Stdin => rustix::stdio::stdin(),
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
        }
    }

    /// Whether a write would not wait for a reader.
    pub fn takes_more(self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A descriptor that can't be asked never makes anybody wait.
        poll(&mut fds, Some(&now)) != Ok(0)
    }

    /// Closes our copy, so that whoever has the other end of the pipe sees the end that the guest made. The number
    /// stays taken: nothing else may ever come to be fd 0, 1 or 2.
    fn close(self) {
        // One end of a pipe without the other: it has ended for readers, and takes nothing of writers. The root is the
        // container's by now, who may have no /dev/null in it.
        let Ok((dead, _)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        // Fails only for a number that is not open.
        match self {
            Self::Stdin => dup2_stdin(&dead).ok(),
            Self::Stdout => dup2_stdout(&dead).ok(),
            Self::Stderr => dup2_stderr(&dead).ok(),
        };
    }
}

/// What becomes of the engine's end when a flow is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It is closed.
    Close,
    /// It stays, for a terminal serves two flows.
    Keep,
}

/// Hands on what comes from the guest.
pub fn from_guest(
    crew: &Crew,
    stream: Arc<OwnedFd>,
    engine: Standard,
    afterwards: Afterwards,
    bell: Arc<Bell>,
) -> io::Result<Arc<Progress>> {
    ioctl_fionbio(&stream, true)?;
    let progress = Arc::new(Progress::default());
    let theirs = Arc::clone(&progress);
    crew.give(c"from guest", move || {
        pump(stream.as_fd(), engine.fd(), None, |bytes| {
            // Before `eager` is looked at: the main thread sets that first and then looks at the count.
            theirs.passed.fetch_add(bytes as u64, Ordering::SeqCst);
            if bell.eager.load(Ordering::SeqCst) {
                bell.ring();
            }
        });
        shut_down(&stream, Shutdown::Read);
        if afterwards == Afterwards::Close {
            engine.close();
        }
        theirs.over.store(true, Ordering::SeqCst);
        bell.ring();
    })?;
    Ok(progress)
}

/// Hands on what the engine's end gives, until it ends, the guest wants no more, or `last` rings and nothing is left.
pub fn to_guest(
    crew: &Crew,
    stream: Arc<OwnedFd>,
    afterwards: Afterwards,
    last: Arc<Bell>,
) -> io::Result<()> {
    ioctl_fionbio(&stream, true)?;
    crew.give(c"to guest", move || {
        let from = Standard::Stdin.fd();
        // A fifo that nobody has opened for writing yet reads as if it had ended.
        if wait_or_ring(from, &last) {
            pump(from, stream.as_fd(), Some(&last), |_| ());
        }
        shut_down(&stream, Shutdown::Write);
        if afterwards == Afterwards::Close {
            Standard::Stdin.close();
        }
    })
}

/// An error means that the peer has closed the stream already, which is what is wanted.
fn shut_down(stream: &OwnedFd, how: Shutdown) {
    rustix::net::shutdown(stream, how).ok();
}

/// Moves bytes until the input ends or either end fails, or `last` rings and no input is left; calls `passed` for each step.
fn pump(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    last: Option<&Bell>,
    mut passed: impl FnMut(usize),
) {
    let mut splicing = is_pipe(from) || is_pipe(to);
    let mut block = Vec::new();
    loop {
        let step = if splicing {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            splice(from, None, to, None, SPLICE, flags).inspect(|bytes| passed(*bytes))
        } else {
            block.resize(BLOCK, 0);
            copy(from, to, &mut block, &mut passed)
        };
        match step {
            Ok(0) => return,
            // The kinds of file do not go together.
            Err(Errno::INVAL) if splicing => splicing = false,
            // The stream never blocks; on the engine's end, too, somebody may have set O_NONBLOCK.
            Err(Errno::AGAIN) => {
                match last {
                    Some(last) if !wait_or_ring(from, last) => return,
                    Some(_) => {}
                    None => wait(from, PollFlags::IN),
                }
                wait(to, PollFlags::OUT);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Reads once and writes all of it.
fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    block: &mut [u8],
    passed: &mut impl FnMut(usize),
) -> Result<usize, Errno> {
    let length = read(from, &mut *block)?;
    let mut rest = &block[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(bytes) => {
                passed(bytes);
                rest = &rest[bytes..];
            }
            Err(Errno::AGAIN) => wait(to, PollFlags::OUT),
            Err(Errno::INTR) => {}
            // A program that writes to a full disk itself goes on, too, without what it wrote.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                passed(rest.len());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Blocks until there is input; false when `last` has rung and there is none.
fn wait_or_ring(from: BorrowedFd<'_>, last: &Bell) -> bool {
    let mut both =
        [PollFd::from_borrowed_fd(from, PollFlags::IN), PollFd::new(last, PollFlags::IN)];
    // An error shows in the read that follows.
    rustix::io::retry_on_intr(|| poll(&mut both, None)).is_err() || !both[0].revents().is_empty()
}

/// Blocks until the descriptor is ready; an error shows in the read or write that follows.
fn wait(fd: BorrowedFd<'_>, events: PollFlags) {
    poll(&mut [PollFd::from_borrowed_fd(fd, events)], None).ok();
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use rustix::{
        io::write,
        pipe::{PipeFlags, pipe_with},
    };

    use super::pump;

    #[test]
    fn a_disk_that_is_full_ends_no_flow() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (from, into) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        write(&into, b"lost").unwrap();
        drop(into);
        let mut passed = 0;
        pump(from.as_fd(), full.as_fd(), None, |bytes| passed += bytes);
        assert_eq!(passed, 4);
    }
}
