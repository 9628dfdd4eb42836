//! Standing before a container or process as if it were our own child: its signals, its end, its exit code.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use kata_sys::{
    signals::SignalFd,
    spawn::{Child, Exit},
    watch::watch,
};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{Interest, unix::AsyncFd};

use crate::failure::Failure;

/// What people and service managers send to a program that runs in their foreground. The rest keeps its meaning for us.
const FORWARDED: [Signal; 8] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::CONT,
];

/// Those that ask for an end.
const INTERRUPTS: [Signal; 4] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];

/// Blocked signals, to be taken before anything is made that a signal could orphan.
pub struct Signals(SignalFd);

impl Signals {
    /// From here on no forwarded signal ends this process.
    pub fn take() -> Result<Self, Failure> {
        SignalFd::block(FORWARDED.map(Signal::as_raw))
            .map(Self)
            .map_err(Failure::host("take signals"))
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

    /// The same while nothing runs yet that could take a signal: one that asks for an end is the caller's to obey.
    pub async fn until_end_or_interrupt(&self) -> Result<Event, Failure> {
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
                let signal = Signal::from_named_raw(received.signal);
                if let Some(signal) = signal {
                    self.forward(signal);
                    return Ok(Event::Signal(signal));
                }
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
    fn forward(&self, signal: Signal) {
        // An end that was not noticed yet is noticed next.
        pidfd_send_signal(&self.monitor.pidfd, signal).ok();
    }
}

/// What happened to a monitor in the foreground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It ended with this code.
    Ended(u8),
    /// This signal came, and was passed on.
    Signal(Signal),
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

    use super::code;

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
