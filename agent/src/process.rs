//! A process of a container: init, or one that was added.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use kata_sys::signal_number::SignalNumber;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

use crate::{
    cgroup::Oom,
    launch::Launched,
    order::{Failure, Step, TerminalSize},
    reaper::{Exit, Life, Reaper},
    streams::{Counter, Streams, Terminal},
};

/// How a process ended, and what it had written by then.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub exit: Exit,
    pub oom: Option<Oom>,
    pub unix_ns: i64,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

/// A process that exists or has existed.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    /// Names the process itself; the pid may be another's once it is reaped.
    pidfd: OwnedFd,
    terminal: Option<Arc<Terminal>>,
    end: watch::Receiver<Option<End>>,
}

/// What a launched process still needs when it has been told apart from its gate.
pub struct Parts {
    pub streams: Streams,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

impl Parts {
    /// Of a launch, whose gate is returned apart.
    pub fn new(launched: Launched, streams: Streams) -> (Self, crate::launch::Gate) {
        let Launched { pid, pidfd, terminal, filters: _, gate } = launched;
        (Self { streams, pid, pidfd, terminal }, gate)
    }
}

impl Process {
    /// Begins to watch over a process and to move its streams.
    ///
    /// `finish` runs in the moment of the end, before anybody is told; it says what the end is to be called, and
    /// whether and why the OOM killer struck.
    pub fn adopt(
        parts: Parts,
        reaper: &Reaper,
        finish: impl FnOnce(Exit) -> (Exit, Option<Oom>) + Send + 'static,
    ) -> Result<Arc<Self>, Failure> {
        let Parts { streams, pid, pidfd, terminal } = parts;
        let Streams { child, plan, stdout, stderr } = streams;
        drop(child);
        let terminal = terminal
            .map(|master| Terminal::new(master, stdout.clone()).map(Arc::new))
            .transpose()
            .step(|| "take the terminal over")?;
        plan.start(terminal.as_ref());
        let (ended, end) = watch::channel(None);
        let settled = terminal.clone();
        let life = life(&pidfd).step(|| "look at the process")?;
        if life == Life::Ended {
            reaper.collect_one(pid);
        }
        reaper.on_end(pid, life, move |exit| {
            let (exit, oom) = finish(exit);
            ended.send_replace(Some(end_of(exit, oom, settled.as_deref(), [&stdout, &stderr])));
        });
        Ok(Arc::new(Self { pid, pidfd, terminal, end }))
    }

    /// The end, if it has come.
    pub fn ended(&self) -> Option<End> {
        *self.end.borrow()
    }

    /// Waits for the end; any number may.
    pub async fn wait(&self) -> Option<End> {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.ok()?;
        *ended
    }

    /// Sends a signal to this process and no other.
    pub fn signal(&self, signal: SignalNumber) -> std::io::Result<()> {
        signal.send(&self.pidfd)
    }

    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Failure> {
        let terminal = self.terminal.as_ref();
        terminal
            .ok_or_else(|| Failure::invalid("the process has no terminal"))?
            .resize(size)
            .step(|| "set the size of the terminal")
    }
}

fn life(pidfd: &OwnedFd) -> rustix::io::Result<Life> {
    let mut polled = [PollFd::new(pidfd, PollFlags::IN)];
    let ended = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? != 0;
    Ok(if ended { Life::Ended } else { Life::Alive })
}

fn end_of(
    exit: Exit,
    oom: Option<Oom>,
    terminal: Option<&Terminal>,
    [stdout, stderr]: [&Counter; 2],
) -> End {
    if let Some(terminal) = terminal {
        terminal.settle();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    End {
        exit,
        oom,
        unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        stdout_bytes: stdout.written(),
        stderr_bytes: stderr.written(),
    }
}
