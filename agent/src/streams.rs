//! Standard streams: pipes or a terminal on the container's side, one connection each on the host's.
//!
//! ```text
//! stdin:    connection ─► pipe ─► process     the host's half-close closes the pipe behind the last byte
//! stdout:   process ─► pipe ─► connection     end of file of the pipe becomes a half-close
//! terminal: process ◄─► pty ◄─► connection    hangup of the pty becomes a half-close
//! ```
//!
//! Each stream is a task of its own that shares nothing: who does not read stops only the writer behind that stream.
//! Pipe and connection are joined by splice(2), so their bytes never enter the agent.

mod pump;
mod terminal;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use kata_protocol::{
    STREAM_PORT,
    agent::Stdio,
    hello::{StreamHello, StreamKind, StreamToken},
};
use kata_sys::watch;
use rustix::{
    fs::{Mode, OFlags},
    io::ioctl_fionread,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr},
};
pub use terminal::Terminal;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    order::{Failure, Step, TerminalSize},
    socket,
};

/// What a pipe may hold: a writer that is faster than the connection blocks later.
const PIPE_SIZE: usize = 1 << 20;

/// Parsed wishes for the streams of a process.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Up to three pipes; an absent stream is `/dev/null`.
    Pipes { stdin: Option<StreamToken>, stdout: Option<StreamToken>, stderr: Option<StreamToken> },
    /// One connection for all, where there is one.
    Terminal {
        token: Option<StreamToken>,
        size: TerminalSize,
        /// A line feed goes out as it is.
        bare_newlines: bool,
    },
}

impl Wanted {
    /// Parses a request.
    pub fn parse(stdio: &Stdio) -> Result<Self, Failure> {
        if !stdio.terminal {
            return Ok(Self::Pipes {
                stdin: token(&stdio.stdin_token)?,
                stdout: token(&stdio.stdout_token)?,
                stderr: token(&stdio.stderr_token)?,
            });
        }
        let characters = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size =
            TerminalSize { rows: characters(stdio.rows), columns: characters(stdio.columns) };
        let token = token(&stdio.terminal_token)?;
        Ok(Self::Terminal { token, size, bare_newlines: stdio.bare_newlines })
    }

    /// Sets a terminal's modes, which its process has not seen yet.
    pub fn set_modes(&self, master: Option<&OwnedFd>) -> Result<(), Failure> {
        if let (Self::Terminal { bare_newlines: true, .. }, Some(master)) = (self, master) {
            let modes = tcgetattr(master).and_then(|mut modes| {
                modes.output_modes.remove(OutputModes::ONLCR);
                tcsetattr(master, OptionalActions::Now, &modes)
            });
            modes.step(|| "set the modes of the terminal")?;
        }
        Ok(())
    }
}

pub fn token(bytes: &[u8]) -> Result<Option<StreamToken>, Failure> {
    match bytes.len() {
        0 => Ok(None),
        _ => StreamToken::try_from(bytes)
            .map(Some)
            .map_err(|_| Failure::invalid("a stream token has 16 bytes")),
    }
}

/// A connection that has said which stream it is.
pub async fn dial(kind: StreamKind, token: StreamToken) -> io::Result<AsyncFd<OwnedFd>> {
    let connection = socket::dial(STREAM_PORT).await?;
    socket::send_all(&connection, &StreamHello { kind, token }.encode()).await?;
    Ok(connection)
}

async fn dial_wanted(
    kind: StreamKind,
    token: Option<StreamToken>,
) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    match token {
        Some(token) => dial(kind, token).await.map(Some),
        None => Ok(None),
    }
}

/// How much a process has written to one stream.
#[derive(Debug, Default, Clone)]
pub struct Counter {
    taken: Arc<AtomicU64>,
    /// The pipe's end that is read, while anybody reads it.
    pipe: Weak<AsyncFd<OwnedFd>>,
}

impl Counter {
    /// Bytes that were passed on, and those that wait in the pipe right now.
    pub fn written(&self) -> u64 {
        // One thread: between the two reads nothing is passed on.
        let waiting = self.pipe.upgrade().and_then(|pipe| ioctl_fionread(pipe.as_fd()).ok());
        self.taken.load(Ordering::Relaxed) + waiting.unwrap_or(0)
    }

    fn add(&self, length: usize) {
        self.taken.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Both sides of a process's streams, before it exists.
#[derive(Debug)]
pub struct Streams {
    /// 0, 1 and 2 of the process; dropped in the agent once it has them.
    pub child: [OwnedFd; 3],
    pub plan: Plan,
    pub stdout: Counter,
    pub stderr: Counter,
}

/// What to pump once the process is there.
#[derive(Debug, Default)]
pub struct Plan {
    pumps: Vec<Pump>,
    terminal: Option<AsyncFd<OwnedFd>>,
}

#[derive(Debug)]
enum Pump {
    Input { connection: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd> },
    Output { connection: AsyncFd<OwnedFd>, pipe: Arc<AsyncFd<OwnedFd>>, counter: Counter },
}

impl Streams {
    /// Dials the host and makes the pipes.
    pub async fn open(wanted: &Wanted) -> Result<Self, Failure> {
        let null = || {
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .step(|| "open /dev/null")
        };
        let mut streams = Self {
            child: [null()?, null()?, null()?],
            plan: Plan::default(),
            stdout: Counter::default(),
            stderr: Counter::default(),
        };
        match wanted {
            Wanted::Terminal { token, .. } => {
                if let Some(token) = token {
                    let connection = dial(StreamKind::Terminal, *token).await;
                    streams.plan.terminal = Some(connection.step(|| "connect the terminal")?);
                }
            }
            Wanted::Pipes { stdin, stdout, stderr } => {
                let (stdin, stdout, stderr) = tokio::try_join!(
                    dial_wanted(StreamKind::Stdin, *stdin),
                    dial_wanted(StreamKind::Stdout, *stdout),
                    dial_wanted(StreamKind::Stderr, *stderr),
                )
                .step(|| "connect the standard streams")?;
                if let Some(connection) = stdin {
                    streams.input(connection).step(|| "make stdin")?;
                }
                let [_, out, error] = &mut streams.child;
                if let Some(connection) = stdout {
                    streams.stdout =
                        output(&mut streams.plan, out, connection).step(|| "make stdout")?;
                }
                if let Some(connection) = stderr {
                    streams.stderr =
                        output(&mut streams.plan, error, connection).step(|| "make stderr")?;
                }
            }
        }
        Ok(streams)
    }

    fn input(&mut self, connection: AsyncFd<OwnedFd>) -> io::Result<()> {
        let (read, write) = pipe()?;
        let [stdin, ..] = &mut self.child;
        *stdin = read;
        let pipe = non_blocking(write)?;
        self.plan.pumps.push(Pump::Input { connection, pipe });
        Ok(())
    }
}

fn output(
    plan: &mut Plan,
    child: &mut OwnedFd,
    connection: AsyncFd<OwnedFd>,
) -> io::Result<Counter> {
    let (read, write) = pipe()?;
    *child = write;
    let pipe = Arc::new(non_blocking(read)?);
    let counter = Counter { taken: Arc::default(), pipe: Arc::downgrade(&pipe) };
    plan.pumps.push(Pump::Output { connection, pipe, counter: counter.clone() });
    Ok(counter)
}

impl Plan {
    /// Starts a task for each direction of each stream; a terminal's master comes from the process.
    pub fn start(self, terminal: Option<&Arc<Terminal>>) {
        for pump in self.pumps {
            match pump {
                Pump::Input { connection, pipe } => {
                    tokio::spawn(pump::input(connection, pipe));
                }
                Pump::Output { connection, pipe, counter } => {
                    tokio::spawn(pump::output(connection, pipe, counter));
                }
            }
        }
        if let (Some(connection), Some(terminal)) = (self.terminal, terminal) {
            let connection = Arc::new(connection);
            tokio::spawn(pump::terminal_input(connection.clone(), terminal.clone()));
            tokio::spawn(pump::terminal_output(connection, terminal.clone()));
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // More is better for throughput only: a guest that has no room for it keeps the default.
    fcntl_setpipe_size(&write, PIPE_SIZE).ok();
    Ok((read, write))
}

/// Sets the flag on our end alone: the process's end is another open file.
fn non_blocking(end: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&end)?;
    rustix::fs::fcntl_setfl(&end, flags | OFlags::NONBLOCK)?;
    watch::watch(end, Interest::READABLE | Interest::WRITABLE)
}
