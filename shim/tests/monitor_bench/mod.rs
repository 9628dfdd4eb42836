//! A monitor on a bench: everything around it is played by the test.

use std::{
    ffi::CString,
    fs::File,
    io::{ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use kata_engine_api::{
    control::{End, Stream, ToMonitor, ToShim},
    record::Cause,
};
use kata_sys::{
    scm,
    spawn::{Child, Exit, Spawn},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
};
use tempfile::TempDir;

pub const SECOND: Duration = Duration::from_secs(1);

/// A deadlock fails the test instead of hanging it.
const DEADLINE: Duration = Duration::from_secs(30);

/// The engine's ends of the stdio.
pub struct Engine {
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
}

pub struct Monitor {
    pub child: Child,
    /// The shim's end.
    pub control: Option<OwnedFd>,
    pub directory: TempDir,
    pub engine: Option<Engine>,
    reaped: bool,
}

impl Monitor {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with_fds(arguments, &[]).unwrap()
    }

    pub fn start_with_stdout(stdout: BorrowedFd<'_>) -> Self {
        Self::launch(&[], Some(stdout), &[]).unwrap()
    }

    /// Returns the master that came through the console socket, too.
    pub fn start_with_console(arguments: &[&str]) -> (Self, File) {
        let (near, far) = scm::stream_pair().unwrap();
        let arguments = [arguments, &["--console-socket-fd", "6"]].concat();
        let monitor = Self::start_with_fds(&arguments, &[far.as_fd()]).unwrap();
        let mut packet = scm::receive(&near).unwrap();
        assert_eq!(packet.bytes, b"/dev/ptmx");
        (monitor, packet.fds.remove(0).into())
    }

    /// `fds` are inherited from number 6 on. An error is what the monitor said instead of `ok`.
    pub fn start_with_fds(arguments: &[&str], fds: &[BorrowedFd<'_>]) -> Result<Self, String> {
        Self::launch(arguments, None, fds)
    }

    fn launch(
        arguments: &[&str],
        stdout: Option<BorrowedFd<'_>>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, String> {
        let (stdin_theirs, stdin) = pipe();
        let (stdout_ours, stdout_theirs) = pipe();
        let (stderr_ours, stderr_theirs) = pipe();
        let (control, control_theirs) = scm::packet_pair().unwrap();
        let (mut ready, ready_theirs) = pipe();
        let directory = tempfile::tempdir().unwrap();
        let directory_fd = File::open(directory.path()).unwrap();
        let mut inherited = vec![
            stdin_theirs.as_fd(),
            stdout.unwrap_or(stdout_theirs.as_fd()),
            stderr_theirs.as_fd(),
            control_theirs.as_fd(),
            directory_fd.as_fd(),
            ready_theirs.as_fd(),
        ];
        inherited.extend(fds);
        let program = CString::new(env!("CARGO_BIN_EXE_kata-monitor")).unwrap();
        let words = ["kata-monitor", "--container", "c1"].iter().chain(arguments);
        let arguments = words.map(|word| CString::new(*word).unwrap()).collect();
        let spawn = Spawn { arguments, fds: inherited, ..Spawn::new(program) };
        let child = spawn.start().unwrap();
        drop(spawn);
        drop((stdin_theirs, stdout_theirs, stderr_theirs, control_theirs, ready_theirs));
        let mut answer = String::new();
        ready.read_to_string(&mut answer).unwrap();
        let engine = Some(Engine { stdin, stdout: stdout_ours, stderr: stderr_ours });
        let mut monitor = Self { child, control: Some(control), directory, engine, reaped: false };
        if answer == "ok\n" {
            return Ok(monitor);
        }
        assert_eq!(monitor.exit(), Exit::Code(1));
        Err(answer)
    }

    /// Gives the monitor streams of these kinds, and returns the guest's ends.
    pub fn streams<const N: usize>(&mut self, kinds: [Stream; N]) -> [UnixStream; N] {
        let pairs = kinds.map(|_| UnixStream::pair().unwrap());
        let theirs: Vec<_> = pairs.iter().map(|(_, theirs)| theirs.as_fd()).collect();
        self.say(&ToMonitor::Streams(kinds.to_vec()), &theirs);
        pairs.map(|(ours, _)| {
            ours.set_read_timeout(Some(DEADLINE)).unwrap();
            ours.set_write_timeout(Some(DEADLINE)).unwrap();
            ours
        })
    }

    pub fn end(&self, end: &End) {
        self.say(&ToMonitor::End(end.clone()), &[]);
    }

    fn say(&self, message: &ToMonitor, fds: &[BorrowedFd<'_>]) {
        let json = serde_json::to_vec(message).unwrap();
        scm::send(self.control.as_ref().unwrap(), &json, fds).unwrap();
    }

    /// The next message to the shim; none when the monitor is gone.
    pub fn next(&self) -> Option<ToShim> {
        self.next_within(DEADLINE)
    }

    /// None also when there is no message in time.
    pub fn next_within(&self, limit: Duration) -> Option<ToShim> {
        let control = self.control.as_ref().unwrap();
        if !is_ready(control.as_fd(), limit) {
            return None;
        }
        let packet = match scm::receive(control) {
            // It died before it had read all that it was told.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            packet => packet.unwrap(),
        };
        (!packet.is_end()).then(|| serde_json::from_slice(&packet.bytes).unwrap())
    }

    /// Plays the shim that was told that all output is passed on, and has recorded the end.
    pub fn leave(&mut self) -> Exit {
        while let Some(message) = self.next() {
            if message == (ToShim::Drained {}) {
                self.control = None;
                return self.exit();
            }
        }
        panic!("the monitor has not said that it passed everything on");
    }

    pub fn exit(&mut self) -> Exit {
        assert!(is_ready(self.child.pidfd.as_fd(), DEADLINE), "the monitor does not end");
        self.reaped = true;
        self.child.wait().unwrap()
    }

    /// What is in the sandbox directory.
    pub fn files(&self) -> Vec<String> {
        let entries = self.directory.path().read_dir().unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if !self.reaped {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn is_ready(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(limit).unwrap())).unwrap() > 0
}

/// Reader and writer.
pub fn pipe() -> (File, File) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

pub fn read_exactly(reader: &mut impl Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes that don't repeat within any block (xorshift).
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1 << 40;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn ended(code: u8, stdout: Option<usize>, stderr: Option<usize>) -> End {
    let bytes = |count: Option<usize>| count.map(|count| count as u64);
    let (stdout_bytes, stderr_bytes) = (bytes(stdout), bytes(stderr));
    End { code, cause: Cause::Exited, stdout_bytes, stderr_bytes, grace_ms: 2000 }
}

/// The same with another grace.
pub fn within(grace_ms: u64, end: End) -> End {
    End { grace_ms, ..end }
}
