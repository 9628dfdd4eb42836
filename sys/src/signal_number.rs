//! Signals by number, real-time ones included, and sending them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

use rustix::process::Pid;

const LAST: i32 = 64;

/// The number of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// SIGKILL.
    pub const KILL: Self = Self(libc::SIGKILL);

    /// The signal of this number; `None` for 0 and for what is no signal.
    pub fn parse(number: u32) -> Option<Self> {
        let number = i32::try_from(number).ok()?;
        (1..=LAST).contains(&number).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0.unsigned_abs()
    }

    /// True when its default is to end a program.
    pub fn ends_a_program(self) -> bool {
        let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGWINCH, libc::SIGURG];
        let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        !harmless.contains(&self.0) && !stopping.contains(&self.0)
    }

    /// Sends it to the process that a pidfd names.
    ///
    /// # Errors
    /// `ESRCH` when the process has ended and was reaped.
    pub fn send(self, pidfd: impl AsFd) -> io::Result<()> {
        let fd = pidfd.as_fd().as_raw_fd();
        // SAFETY: takes integers and a null pointer, which stands for no further information.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                self.0,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends it to the process of this number, whichever that is by now.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn send_to(self, pid: Pid) -> io::Result<()> {
        // SAFETY: takes two integers; a `Pid` is above 0, so that one process is meant.
        let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), self.0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::SignalNumber;

    #[test]
    fn named_and_real_time_signals_have_numbers_and_others_do_not() {
        for number in [1, 9, 15, 31, 34, 64] {
            assert_eq!(SignalNumber::parse(number).map(SignalNumber::number), Some(number));
        }
        for number in [0, 65, u32::MAX] {
            assert_eq!(SignalNumber::parse(number), None);
        }
    }

    #[test]
    fn a_stop_does_not_end_a_program_and_a_real_time_signal_does() {
        let ends = |number| SignalNumber::parse(number).unwrap().ends_a_program();
        assert!(!ends(19) && !ends(17) && ends(15) && ends(40));
    }
}
