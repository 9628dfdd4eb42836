//! Standing before a container or process as if it were our own child: its signals, its end, its exit code.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    time::Duration,
};

use kata_sys::{
    signal_number::SignalNumber,
    signals::SignalFd,
    spawn::{Child, Exit},
    watch::watch,
};
use rustix::process::Signal;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::failure::Failure;

/// What is passed on, as runc does: what the monitor takes, but for what is about us (SIGCHLD, SIGPIPE), about the terminal
/// that we share with it (a key stops both, and the kernel tells each of a new size), or is a fault of our own.
fn forwarded() -> impl Iterator<Item = i32> {
    let own = [Signal::CHILD, Signal::PIPE, Signal::URG];
    let terminal = [Signal::TSTP, Signal::TTIN, Signal::TTOU, Signal::WINCH];
    let faults = [Signal::ILL, Signal::TRAP, Signal::BUS, Signal::FPE, Signal::SEGV, Signal::SYS];
    let kept = own.into_iter().chain(terminal).chain(faults).map(Signal::as_raw);
    let kept: Vec<i32> = kept.collect();
    (1..=64).filter(move |signal| !kept.contains(signal))
}

/// When the monitor ends before a start is answered, the answer says why, and is on its way.
const ANSWER: Duration = Duration::from_secs(10);

/// Those that ask for an end.
const INTERRUPTS: [i32; 4] =
    [Signal::HUP.as_raw(), Signal::INT.as_raw(), Signal::QUIT.as_raw(), Signal::TERM.as_raw()];

/// Blocked signals, to be taken before anything is made that a signal could orphan.
pub struct Signals(SignalFd);

impl Signals {
    /// From here on no forwarded signal ends this process.
    pub fn take() -> Result<Self, Failure> {
        SignalFd::block(forwarded()).map(Self).map_err(Failure::host("take signals"))
    }
}

/// A monitor in the foreground; lives inside a tokio runtime.
pub struct Foreground<'a> {
    monitor: &'a Child,
    signals: Signals,
    signals_ready: AsyncFd<OwnedFd>,
    end: AsyncFd<OwnedFd>,
}

impl<'a> Foreground<'a> {
    /// Watches a monitor.
    pub fn new(monitor: &'a Child, signals: Signals) -> Result<Self, Failure> {
        let watched = |fd: io::Result<OwnedFd>| {
            fd.and_then(|fd| watch(fd, Interest::READABLE))
                .map_err(Failure::host("wait for the container"))
        };
        Ok(Self {
            monitor,
            signals_ready: watched(signals.0.as_fd().try_clone_to_owned())?,
            end: watched(monitor.pidfd.try_clone())?,
            signals,
        })
    }

    /// Forwards signals until the monitor has ended; its exit code is the container's.
    pub async fn until_end(&self) -> Result<u8, Failure> {
        loop {
            if let Event::Ended(code) = self.next().await? {
                return Ok(code);
            }
        }
    }

    /// Waits for the answer that something runs now; none when the monitor has ended without one.
    ///
    /// While nothing runs yet that could take a signal, one that asks for an end is the caller's to obey, unless the answer
    /// comes within `crossing`: then it is passed on.
    pub async fn until_started<T>(
        &self,
        crossing: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<Option<T>, Failure> {
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => Ok(Some(answer)),
            event = self.until_end_or_interrupt() => match event? {
                Event::Signal(signal) => {
                    let answer = timeout(crossing, answer).await;
                    let answer = answer.map_err(|_| Failure::Interrupted(signal))?;
                    // It was passed on already, to one that may not have been there.
                    self.forward(signal);
                    Ok(Some(answer))
                }
                Event::Ended(_) => Ok(timeout(ANSWER, answer).await.ok()),
            },
        }
    }

    async fn until_end_or_interrupt(&self) -> Result<Event, Failure> {
        loop {
            match self.next().await? {
                Event::Signal(signal) if !INTERRUPTS.contains(&signal) => {}
                event => return Ok(event),
            }
        }
    }

    async fn next(&self) -> Result<Event, Failure> {
        let failed = || Failure::host("wait for the container");
        loop {
            if let Some(received) = self.signals.0.next().map_err(failed())? {
                self.forward(received.signal);
                return Ok(Event::Signal(received.signal));
            }
            if let Some(exit) = self.monitor.try_wait().map_err(failed())? {
                return Ok(Event::Ended(code(exit)));
            }
            tokio::select! {
                ended = self.end.readable() => ended.map_err(failed())?.clear_ready(),
                signals = self.signals_ready.readable() => signals.map_err(failed())?.clear_ready(),
            }
        }
    }

    /// On a hangup the kernel tells every process of the terminal's foreground, the monitor too where it shares ours;
    /// where it does not, nobody else tells it: a second SIGHUP does no harm.
    fn forward(&self, signal: i32) {
        let signal = u32::try_from(signal).ok().and_then(SignalNumber::parse);
        // An end that was not noticed yet is noticed next.
        signal.and_then(|signal| signal.send(&self.monitor.pidfd).ok());
    }
}

/// What happened to a monitor in the foreground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// It ended with this code.
    Ended(u8),
    /// The signal of this number came, and was passed on.
    Signal(i32),
}

/// Exit code of a shell for an end.
pub fn code(exit: Exit) -> u8 {
    match exit {
        // Wait statuses have eight bits.
        Exit::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        Exit::Signal(signal) => u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use kata_sys::spawn::Exit;

    use super::{code, forwarded};

    #[test]
    fn what_stops_a_job_and_what_is_our_own_fault_is_ours() {
        let forwarded: Vec<i32> = forwarded().collect();
        // HUP, INT, QUIT, ABRT, USR1, USR2, ALRM, TERM, STKFLT, CONT, XCPU, XFSZ, VTALRM, PROF, IO, PWR.
        for signal in [1, 2, 3, 6, 10, 12, 14, 15, 16, 18, 24, 25, 26, 27, 29, 30, 34, 37, 64] {
            assert!(forwarded.contains(&signal), "{signal}");
        }
        // ILL, TRAP, BUS, FPE, SEGV, PIPE, CHLD, TSTP, TTIN, TTOU, URG, WINCH, SYS.
        for signal in [4, 5, 7, 8, 11, 13, 17, 20, 21, 22, 23, 28, 31] {
            assert!(!forwarded.contains(&signal), "{signal}");
        }
    }

    #[test]
    fn ends_have_the_codes_of_shells() {
        for (exit, wanted) in [
            (Exit::Code(0), 0),
            (Exit::Code(42), 42),
            (Exit::Code(255), 255),
            (Exit::Signal(9), 137),
            (Exit::Signal(15), 143),
            (Exit::Signal(64), 192),
        ] {
            assert_eq!(code(exit), wanted);
        }
    }
}
