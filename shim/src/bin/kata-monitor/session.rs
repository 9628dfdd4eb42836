//! The monitor's life after it is ready.
//!
//! ```text
//!            streams                 end                    every counted byte passed on,
//! waiting ────────────► streaming ────────────► ending ──── and end of streams or grace over ────► drained, leave, exit(code)
//!    │                      │
//!    └──────────┬───────────┘
//!               └ control closes: the shim is gone ─► end.json (shim lost), exit(137)
//! ```
//!
//! The main thread alone decides: it waits for the control socket, for signals and for the bell that flows ring. An `end`
//! without streams (a container that never started) exits at once. A reader of stdout that is slow delays the end for as
//! long as it takes, as it would delay a process that writes to it; the grace only bounds the wait for the *end* of a
//! stream that a descendant holds open. A guest that has promised bytes and gives none, though their reader would take them,
//! is waited for no longer than [`SILENCE`].

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use kata_engine_api::{
    control::{End, Stream, ToMonitor, ToShim},
    record::Cause,
};
use kata_sys::{
    causes::chain,
    scm::{self, Packet},
    signals::{Received, SignalFd},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    console,
    crew::Crew,
    flow::{self, Afterwards, Bell, Progress, Standard},
    localhost::Localhost,
    note, resolver,
};

const SIGTSTP: i32 = 20;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
const SIGWINCH: i32 = 28;

/// Signals that the monitor takes for the container: all but SIGKILL and SIGSTOP, which nobody can take, SIGCHLD and
/// SIGPIPE, which would be its own.
pub fn forwarded() -> impl Iterator<Item = i32> {
    const SIGPIPE: i32 = 13;
    const SIGCHLD: i32 = 17;
    (1..=64).filter(|signal| ![SIGPIPE, SIGCHLD].contains(signal))
}

/// A record is written within milliseconds; a shim that takes longer hangs.
const RECORDING: Duration = Duration::from_secs(10);

/// So long a guest may owe bytes that it has promised while their reader would take them: seconds are a busy host's, more
/// is a lie.
const SILENCE: Duration = Duration::from_secs(15);

/// Why a monitor gives up on its shim.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the shim closed its control socket")]
    Closed,
    #[error("control socket failed")]
    Socket(#[source] io::Error),
    #[error("control message was not understood")]
    Message(#[source] serde_json::Error),
    #[error("streams came twice, or not as many descriptors as kinds")]
    Streams,
    #[error("cannot pass streams on")]
    Flow(#[source] io::Error),
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// A flow from the guest, with what the end says about it.
struct Output {
    stream: Stream,
    progress: Arc<Progress>,
}

/// The process has ended.
struct Ending {
    end: End,
    /// When descendants that hold a stream are waited for no longer.
    deadline: Instant,
    /// When a flow last had news, or was seen to wait for its reader.
    heard: Instant,
}

/// A monitor that is ready.
pub struct Session {
    /// Towards the shim; non-blocking.
    pub control: OwnedFd,
    /// The sandbox directory, for a container's `end.json`; none for an additional process.
    pub directory: Option<OwnedFd>,
    /// What is forwarded.
    pub signals: SignalFd,
    /// The standard streams are a terminal, whose size is told.
    pub terminal: bool,
    /// Rung by flows.
    pub bell: Arc<Bell>,
    /// Who does what takes time.
    pub crew: Crew,
    /// Rung when no more input is to be waited for.
    pub last_input: Arc<Bell>,
}

/// What changes while a session runs.
#[derive(Default)]
struct State {
    outputs: Option<Vec<Output>>,
    ending: Option<Ending>,
    localhost: Option<Localhost>,
}

impl State {
    fn outputs(&self) -> &[Output] {
        self.outputs.as_deref().unwrap_or_default()
    }

    /// Notes that a flow moves, or stands still because of its reader, who may take as long as it likes.
    fn note_life(&mut self, moved: bool) {
        let slow = self.outputs().iter().any(|output| {
            let engine = match output.stream {
                Stream::Stderr => Standard::Stderr,
                Stream::Stdin | Stream::Stdout | Stream::Terminal => Standard::Stdout,
            };
            !output.progress.is_over() && !engine.takes_more()
        });
        if let Some(ending) = self.ending.as_mut().filter(|_| moved || slow) {
            ending.heard = Instant::now();
        }
    }
}

impl Session {
    /// Stands for the container until it has ended; returns its exit code.
    pub fn run(self) -> u8 {
        let mut state = State::default();
        match self.follow(&mut state) {
            Ok(code) => code,
            Err(lost) => {
                if let Some(directory) = &self.directory {
                    // A note that can't be written has no other reader either: the exit code still tells.
                    let detail = Some(chain(&lost));
                    note::write(directory.as_fd(), note::LOST, Cause::ShimLost, detail).ok();
                }
                note::LOST
            }
        }
    }

    fn follow(&self, state: &mut State) -> Result<u8, Lost> {
        loop {
            let news = self.wait(state)?;
            if news.bell {
                self.bell.hush();
            }
            state.note_life(news.bell);
            if news.signals {
                self.forward_signals(state)?;
            }
            if news.control {
                self.obey(state)?;
            }
            if let Some(code) = finished(state) {
                self.leave_note(state);
                // The shim may be gone by now; it has said all that it had to say.
                self.tell(&ToShim::Drained {}).ok();
                self.await_leave();
                return Ok(code);
            }
        }
    }

    /// The true end, should the shim die before it has recorded it. Without a note it would read as `shim lost`.
    fn leave_note(&self, state: &State) {
        if let (Some(directory), Some(Ending { end, .. })) = (&self.directory, &state.ending) {
            note::write(directory.as_fd(), end.code, end.cause, None).ok();
        }
    }

    /// Stays until the shim has recorded the end and closed the connection, or is gone: whoever sees this process exit
    /// finds the record true.
    fn await_leave(&self) {
        let timeout = Timespec { tv_sec: RECORDING.as_secs().cast_signed(), tv_nsec: 0 };
        let mut control = [PollFd::new(&self.control, PollFlags::IN)];
        // Neither an error nor a timeout changes anything: the end is known and its output passed on.
        rustix::io::retry_on_intr(|| poll(&mut control, Some(&timeout))).ok();
    }

    fn wait(&self, state: &State) -> Result<News, Lost> {
        let ending = state.ending.as_ref();
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
        if ending.is_none() {
            fds.push(PollFd::new(&self.control, PollFlags::IN));
        }
        // While counted bytes are missing the bell tells that they came, and silence that they never will.
        let timeout = ending
            .map(|ending| match has_counted(ending, state.outputs()) {
                true => ending.deadline,
                false => ending.deadline.max(ending.heard + SILENCE),
            })
            .map(|until| until.saturating_duration_since(Instant::now()))
            .and_then(|rest| Timespec::try_from(rest).ok());
        rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))
            .map_err(|error| Lost::Wait(error.into()))?;
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(News { signals: ready(0), bell: ready(1), control: ready(2) })
    }

    /// Reads what the shim says, all of it: an `end` may be followed by the end of the connection.
    fn obey(&self, state: &mut State) -> Result<(), Lost> {
        while state.ending.is_none() {
            let packet = match scm::receive(&self.control) {
                Ok(packet) if packet.is_end() => return Err(Lost::Closed),
                Ok(packet) => packet,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Lost::Closed);
                }
                Err(error) => return Err(Lost::Socket(error)),
            };
            match serde_json::from_slice(&packet.bytes).map_err(Lost::Message)? {
                ToMonitor::Streams(kinds) => self.start_flows(state, &kinds, packet)?,
                ToMonitor::Localhost {} => {
                    let control = self.control.try_clone().map_err(Lost::Flow)?;
                    // Without it nobody is let in: the listeners are closed.
                    state.localhost = Localhost::serve(&self.crew, packet.fds, control).ok();
                }
                ToMonitor::Dialled(number) => {
                    if let Some(localhost) = &state.localhost {
                        localhost.dialled(number, packet.fds.into_iter().next());
                    }
                }
                ToMonitor::Resolver {} => {
                    let stream = packet.fds.into_iter().next().ok_or(Lost::Streams)?;
                    // Without it the guest is told by the end of the stream.
                    resolver::serve(&self.crew, stream).ok();
                }
                ToMonitor::CloseStdin {} => self.last_input.ring(),
                ToMonitor::End(end) => {
                    self.bell.ring_at_every_step();
                    let deadline = Instant::now() + Duration::from_millis(end.grace_ms);
                    state.ending = Some(Ending { end, deadline, heard: Instant::now() });
                }
            }
        }
        Ok(())
    }

    fn start_flows(&self, state: &mut State, kinds: &[Stream], packet: Packet) -> Result<(), Lost> {
        if state.outputs.is_some() || kinds.len() != packet.fds.len() {
            return Err(Lost::Streams);
        }
        let mut outputs = Vec::new();
        for (kind, stream) in kinds.iter().zip(packet.fds) {
            let progress = self.start_flow(*kind, Arc::new(stream)).map_err(Lost::Flow)?;
            outputs.extend(progress.map(|progress| Output { stream: *kind, progress }));
        }
        state.outputs = Some(outputs);
        self.tell_size()
    }

    fn start_flow(&self, kind: Stream, stream: Arc<OwnedFd>) -> io::Result<Option<Arc<Progress>>> {
        let bell = || Arc::clone(&self.bell);
        match kind {
            Stream::Stdin => {
                flow::to_guest(&self.crew, stream, Afterwards::Close, Arc::clone(&self.last_input))
                    .map(|()| None)
            }
            Stream::Stdout => {
                flow::from_guest(&self.crew, stream, Standard::Stdout, Afterwards::Close, bell())
                    .map(Some)
            }
            Stream::Stderr => {
                flow::from_guest(&self.crew, stream, Standard::Stderr, Afterwards::Close, bell())
                    .map(Some)
            }
            Stream::Terminal => {
                let last_input = Arc::clone(&self.last_input);
                flow::to_guest(&self.crew, Arc::clone(&stream), Afterwards::Keep, last_input)?;
                flow::from_guest(&self.crew, stream, Standard::Stdout, Afterwards::Keep, bell())
                    .map(Some)
            }
        }
    }

    fn forward_signals(&self, state: &State) -> Result<(), Lost> {
        while let Some(received) = self.signals.next().map_err(Lost::Wait)? {
            match received {
                Received { signal: SIGWINCH, .. } if self.terminal => {
                    // Before the streams there is no terminal to resize; its size is told with them.
                    if state.outputs.is_some() {
                        self.tell_size()?;
                    }
                }
                // Job control of the caller's terminal is about the monitor, not about the container.
                Received { signal: SIGTSTP | SIGTTIN | SIGTTOU, from_kernel: true } => {}
                Received { signal, .. } => self.tell(&ToShim::Signal(signal))?,
            }
        }
        Ok(())
    }

    fn tell_size(&self) -> Result<(), Lost> {
        match console::size().filter(|_| self.terminal) {
            Some(size) => self.tell(&ToShim::Resize(size)),
            None => Ok(()),
        }
    }

    /// Sends a message, unless the shim is far behind: signals of the same number merge anyway, and a stalled shim must
    /// not stall this process. A closed connection shows when it is read from.
    fn tell(&self, message: &ToShim) -> Result<(), Lost> {
        let bytes = serde_json::to_vec(message).map_err(Lost::Message)?;
        match scm::send(&self.control, &bytes, &[]) {
            Err(error) if !is_peer_trouble(&error) => Err(Lost::Socket(error)),
            _ => Ok(()),
        }
    }
}

/// What a wait ended with.
struct News {
    signals: bool,
    bell: bool,
    control: bool,
}

fn is_peer_trouble(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, WouldBlock};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | WouldBlock)
}

/// True when every byte that the process is known to have written is passed on, or lost with its stream.
fn has_counted(ending: &Ending, outputs: &[Output]) -> bool {
    outputs.iter().all(|output| {
        let count = match output.stream {
            Stream::Stderr => ending.end.stderr_bytes,
            Stream::Stdin | Stream::Stdout | Stream::Terminal => ending.end.stdout_bytes,
        };
        output.progress.has_passed(count.unwrap_or(0))
    })
}

/// The exit code, once nothing is left to pass on.
fn finished(state: &State) -> Option<u8> {
    let ending = state.ending.as_ref()?;
    let over = state.outputs().iter().all(|output| output.progress.is_over());
    let waited = over || Instant::now() >= ending.deadline;
    let silent = ending.heard.elapsed() >= SILENCE;
    (waited && (silent || has_counted(ending, state.outputs()))).then_some(ending.end.code)
}
