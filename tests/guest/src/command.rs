//! Programs with input, output and a deadline.

use std::{
    io::Write,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{Capture, pace::ceiling};

/// Nothing that a test starts takes longer on a loaded machine under emulation, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(180);

/// What a program left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// All of it.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Output {
    /// Asserts a failure that is told in one line, which has each of `words` in it.
    pub fn assert_one_line(&self, words: &[&str]) {
        let line = self.stderr();
        assert!((1..=254).contains(&self.code), "exit code {}: {line}", self.code);
        assert_eq!(line.trim_end().lines().count(), 1, "{line}");
        assert!(line.len() < 600, "{} bytes: {line}", line.len());
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line}");
        }
        assert_eq!(self.stdout(), "");
    }
}

/// Runs a program with `input` to its end.
pub fn run(command: Command, input: &[u8]) -> Output {
    let mut running = Running::start(command);
    running.write(input);
    running.finish()
}

/// A program in the midst of its run. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    /// What was called, to be told where it does not end.
    line: String,
    child: Child,
    started: Instant,
    /// Its standard output so far.
    pub stdout: Capture,
    stderr: Capture,
}

impl Running {
    /// Starts a program with pipes.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = format!("{command:?}");
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let stdout = Capture::of(child.stdout.take().unwrap().into());
        let stderr = Capture::of(child.stderr.take().unwrap().into());
        Self { line, child, started, stdout, stderr }
    }

    /// Pid of the program.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Gives it input; one that has closed its input is passed over.
    pub fn write(&mut self, input: &[u8]) {
        if let Some(stdin) = self.child.stdin.as_mut() {
            stdin.write_all(input).ok();
        }
    }

    /// Closes its input and waits for its end, and that of its output.
    pub fn finish(mut self) -> Output {
        drop(self.child.stdin.take());
        let status = self.wait();
        let took = self.started.elapsed();
        Output {
            code: code(status),
            stdout: self.stdout.take_all(),
            stderr: self.stderr.take_all(),
            took,
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let timeout = Timespec::try_from(ceiling(DEADLINE)).unwrap();
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
            self.child.kill().unwrap();
            let within = ceiling(DEADLINE).as_secs();
            panic!("{} did not end within {within} s", self.line);
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended: that is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}
