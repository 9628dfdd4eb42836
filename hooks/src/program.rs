//! One hook, from its start to its end.
//!
//! ```text
//! started ── exits ─────────────────────────► what is in the pipes is read, its status is judged
//!    └────── timeout ─► process group killed ─► reaped ─► timeout
//! ```
//!
//! Only its exit ends the wait: a descendant that holds its pipes has nothing to say any more.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::{Duration, Instant},
};

use kata_sys::{
    spawn::{Child, Exit, Lifetime, Spawn},
    syscall_filter::Filter,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, memfd_create},
    pipe::{PipeFlags, pipe_with},
    process::{Signal, kill_process_group},
};

use crate::{Fault, Hook, State, tail::Tail};

/// Runs a hook to its end, under filters of system calls.
pub(crate) fn run(hook: &Hook, state: &State, filters: &[Filter<'_>]) -> Result<(), Fault> {
    let stdin = document(state).map_err(Fault::own("write the state for a hook"))?;
    let [(stdout, stdout_writer), (stderr, stderr_writer)] =
        [output()?, output()?].map(|(reader, writer)| (Tail::of(reader), writer));
    let mut child = prepared(hook, [stdin.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()])?;
    child.filters = filters.to_vec();
    let child = child.start()?;
    // Ours would keep the streams open.
    drop((stdin, stdout_writer, stderr_writer));
    let mut outputs = [stdout, stderr];
    let exit = match wait(&child, &mut outputs, hook.time()) {
        Ok(Some(exit)) => exit,
        Ok(None) => {
            end(&child);
            return Err(Fault::Timeout(hook.time()));
        }
        Err(error) => {
            end(&child);
            return Err(Fault::own("wait for a hook")(error));
        }
    };
    match exit {
        Exit::Code(0) => Ok(()),
        exit => {
            let [stdout, stderr] = outputs.map(|output| output.text());
            Err(Fault::Failed { exit, stdout, stderr })
        }
    }
}

fn prepared<'a>(hook: &Hook, streams: [BorrowedFd<'a>; 3]) -> Result<Spawn<'a>, Fault> {
    let mut spawn = Spawn::new(text(hook.path.as_os_str())?);
    if !hook.args.is_empty() {
        spawn.arguments = texts(&hook.args)?;
    }
    spawn.environment = match &hook.env {
        Some(words) => texts(words)?,
        None => std::env::vars_os().map(variable).collect::<Result<_, _>>()?,
    };
    spawn.fds = streams.to_vec();
    // A group of its own, to be killed whole.
    spawn.new_session = true;
    spawn.lifetime = Lifetime::Caller;
    Ok(spawn)
}

fn text(word: &OsStr) -> Result<CString, Fault> {
    CString::new(word.as_bytes()).map_err(|_| Fault::ZeroByte)
}

fn variable((name, value): (OsString, OsString)) -> Result<CString, Fault> {
    let mut word = name;
    word.push("=");
    word.push(value);
    text(&word)
}

fn texts(words: &[String]) -> Result<Vec<CString>, Fault> {
    words.iter().map(|word| text(word.as_ref())).collect()
}

/// A pipe; reading from it never blocks.
fn output() -> Result<(OwnedFd, OwnedFd), Fault> {
    let made = pipe_with(PipeFlags::CLOEXEC).and_then(|(reader, writer)| {
        fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        Ok((reader, writer))
    });
    made.map_err(|error| Fault::own("make a pipe for a hook")(error.into()))
}

/// The state as a file in memory, at its beginning.
fn document(state: &State) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("state.json", flags)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads what the hook says until it has ended; `None` when its time is over.
fn wait(child: &Child, outputs: &mut [Tail; 2], time: Duration) -> io::Result<Option<Exit>> {
    let deadline = Instant::now().checked_add(time);
    loop {
        if let Some(exit) = child.try_wait()? {
            drain(outputs);
            return Ok(Some(exit));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
        let open = outputs.iter().filter_map(Tail::open);
        fds.extend(open.map(|output| PollFd::from_borrowed_fd(output, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))?;
        for output in outputs.iter_mut() {
            output.read();
        }
    }
}

/// What it had written before it ended; a descendant that writes on is not listened to for longer than one pipe.
fn drain(outputs: &mut [Tail; 2]) {
    for output in outputs {
        output.read();
    }
}

/// Ends a hook that goes on, with its descendants.
fn end(child: &Child) {
    // Gone meanwhile is what is wanted.
    kill_process_group(child.pid, Signal::KILL).ok();
    if child.kill().is_ok() {
        child.wait().ok();
    }
}
