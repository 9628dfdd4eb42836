//! Signals as something to read, instead of handlers that interrupt.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

/// Size of `struct signalfd_siginfo`.
const INFO: usize = 128;

/// `si_code` of a signal that the kernel made, for example for a key of a terminal.
const SI_KERNEL: i32 = 0x80;

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The kernel made it (a terminal's key, a hangup); else a process sent it.
    pub from_kernel: bool,
}

/// Pending signals, readable when there are any; non-blocking, close-on-exec.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks exactly `signals` in the calling thread and in those that it makes from now on, and returns where they
    /// can be read. Numbers that can't be blocked (SIGKILL, SIGSTOP, the C library's own) are left out.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn block(signals: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set before anything else reads it; sigaddset refuses numbers that are
        // no signals and touches nothing then; the old mask is not asked for.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            match libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) {
                0 => {}
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd has just returned it, so it is open and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal; `None` when there is none.
    ///
    /// # Errors
    /// Those of read(2) but `EAGAIN`.
    pub fn next(&self) -> io::Result<Option<Received>> {
        let mut info = [0; INFO];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut info)) {
            // ssi_signo, ssi_errno, ssi_code: three words of 32 bits.
            Ok(INFO) => {
                let word = |at| [info[at], info[at + 1], info[at + 2], info[at + 3]];
                let signal = i32::from_ne_bytes(word(0));
                let from_kernel = i32::from_ne_bytes(word(8)) == SI_KERNEL;
                Ok(Some(Received { signal, from_kernel }))
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "signal was cut short")),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{Received, SignalFd};

    #[test]
    fn a_blocked_signal_is_read_and_read_once() {
        // A thread of its own: the mask stays.
        std::thread::spawn(|| {
            let signals = SignalFd::block([libc::SIGUSR1, libc::SIGKILL, -3, 40]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            for signal in [libc::SIGUSR1, 40] {
                // SAFETY: directs a signal that is blocked to this thread.
                unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
                let received = Received { signal, from_kernel: false };
                assert_eq!(signals.next().unwrap(), Some(received));
                assert_eq!(signals.next().unwrap(), None);
            }
        })
        .join()
        .unwrap();
    }
}
