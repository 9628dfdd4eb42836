//! Child processes of which every detail is settled before they exist.
//!
//! ```text
//! parent: prepare (argv, envp, descriptors, pipes) ─► clone3 ─► [id maps ─► go] ─► read status ─► Child
//! child:                                                └► [wait for go] ─► settle ─► execve ─► (status: end of file)
//!                                                                            └ error ─► status: step, errno ─► _exit
//! ```
//!
//! The caller may have many threads, so the child makes system calls only: no allocation, no lock, no
//! Rust code that can panic. Whatever it needs lies in memory that the parent filled before the clone.
//!
//! A child with [`Lifetime::Caller`] gets SIGKILL when the *thread* that spawned it ends, for this is
//! what PR_SET_PDEATHSIG follows: call [`Spawn::start`] from a thread that lives as long as the process.
//! An execve keeps that signal, a change of credentials clears it: a jail launcher arms it anew
//! ([`crate::jail`]).

use std::{
    ffi::{CString, c_char},
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::{Mutex, PoisonError},
};

use child::{Plan, REPORT, Step};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal,
        waitid,
    },
    thread::UnshareFlags,
};

use crate::syscall_filter::Filter;

/// Why a child process did not come to life.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Pipes, `/dev/null` or the caller's own pidfd.
    #[error("cannot prepare a child process")]
    Prepare(#[source] io::Error),
    /// clone3(2): limits, or a namespace that may not be made.
    #[error("cannot clone a child process")]
    Clone(#[source] io::Error),
    /// The identity map of the child's user namespace.
    #[error("cannot map the ids of a child's user namespace")]
    MapIds(#[source] io::Error),
    /// A step of the child before its program ran.
    #[error("a child process could not {step}")]
    Settle {
        /// What it attempted.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// execve(2).
    #[error("cannot execute {program:?}")]
    Execute {
        /// The path as it was given.
        program: CString,
        /// What the system said.
        source: io::Error,
    },
}

/// What ends a child, apart from itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// SIGKILL when the spawning thread ends.
    #[default]
    Caller,
    /// It may outlive the caller.
    Own,
}

/// A program to start, with everything that it inherits; the rest it does not inherit.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Path of the executable; not searched for.
    pub program: CString,
    /// argv, the name of the program included.
    pub arguments: Vec<CString>,
    /// Environment, `NAME=value`; nothing is added to it.
    pub environment: Vec<CString>,
    /// The child's descriptor `i` is a duplicate of `fds[i]`; all others are closed. Standard streams
    /// that are left out are `/dev/null`.
    pub fds: Vec<BorrowedFd<'a>>,
    /// Namespaces that are new in the child. In a new user namespace every id of the caller's is mapped
    /// to itself.
    pub namespaces: UnshareFlags,
    /// Makes the child the leader of a session of its own.
    pub new_session: bool,
    /// What ends the child, apart from itself.
    pub lifetime: Lifetime,
    /// Filters of system calls, in the order in which the child loads them.
    pub filters: Vec<Filter<'a>>,
}

impl Spawn<'_> {
    /// A program with its name as only argument, no environment, and the default for everything else.
    pub fn new(program: CString) -> Self {
        Self {
            arguments: vec![program.clone()],
            program,
            environment: Vec::new(),
            fds: Vec::new(),
            namespaces: UnshareFlags::empty(),
            new_session: false,
            lifetime: Lifetime::default(),
            filters: Vec::new(),
        }
    }

    /// Starts the program and returns once its first instruction is due, or says why it can't be.
    ///
    /// # Errors
    /// Each step has its variant in [`SpawnError`]; no child is left in any case.
    pub fn start(&self) -> Result<Child, SpawnError> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| SpawnError::Prepare(source.into()))?;
        let mut sources: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        while sources.len() < 3 {
            sources.push(null.as_raw_fd());
        }
        let pipes = Pipes::new().map_err(SpawnError::Prepare)?;
        let caller = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(|source| SpawnError::Prepare(source.into()))?;
        let user_namespace = self.namespaces.contains(UnshareFlags::NEWUSER);
        let filters = self.filters.iter().map(Filter::lay_out).collect::<io::Result<_>>();
        let mut plan = Plan {
            moved: vec![-1; sources.len()],
            sources,
            status: pipes.status_writer.as_raw_fd(),
            go: user_namespace.then(|| pipes.go_reader.as_raw_fd()),
            go_writer: pipes.go_writer.as_raw_fd(),
            caller: (self.lifetime == Lifetime::Caller).then(|| caller.as_raw_fd()),
            new_session: self.new_session,
            filters: filters.map_err(SpawnError::Prepare)?,
            program: self.program.as_ptr(),
            arguments: pointers(&self.arguments),
            environment: pointers(&self.environment),
        };
        let child = clone(self, &mut plan).map_err(SpawnError::Clone)?;
        let Pipes { status_reader, status_writer, go_reader, go_writer } = pipes;
        drop((status_writer, go_reader));
        if user_namespace {
            map_ids(child.pid).map_err(|source| child.abandon(SpawnError::MapIds(source)))?;
            rustix::io::write(&go_writer, &[0])
                .map_err(|source| child.abandon(SpawnError::MapIds(source.into())))?;
        }
        drop(go_writer);
        self.outcome(child, &status_reader)
    }

    /// Waits for the child's execve, or for its word that a step failed.
    fn outcome(&self, child: Child, status: &OwnedFd) -> Result<Child, SpawnError> {
        let mut report = [0; REPORT];
        let length = match rustix::io::retry_on_intr(|| rustix::io::read(status, &mut report)) {
            Ok(length) => length,
            Err(source) => return Err(child.abandon(SpawnError::Prepare(source.into()))),
        };
        if length == 0 {
            return Ok(child);
        }
        let [step, errno @ ..] = report;
        let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
        Err(child.abandon(match Step::name(step) {
            Some(step) => SpawnError::Settle { step, source },
            None => SpawnError::Execute { program: self.program.clone(), source },
        }))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A running child; nobody but its owner reaps it. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    /// Its process id in the caller's pid namespace. Stays taken until the child is reaped.
    pub pid: Pid,
    /// Readable when the child has ended; names this very process for ever.
    pub pidfd: OwnedFd,
    /// How it ended, once it is reaped: more than one may ask.
    exit: Mutex<Option<Exit>>,
}

impl Child {
    /// Whether the child has ended, reaped or not.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(rustix::io::retry_on_intr(|| poll(&mut watched, Some(&now)))? > 0)
    }

    /// Blocks until the child has ended, and reaps it.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn wait(&self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut ended, None))?;
        }
    }

    /// Reaps the child if it has ended; `None` while it runs.
    ///
    /// # Errors
    /// Those of waitid(2).
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            *exit = self.reap()?;
        }
        Ok(*exit)
    }

    /// Sends SIGKILL; a child that has ended already is no error.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2) but `ESRCH`.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn reap(&self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        Ok(status.and_then(|status| {
            status
                .exit_status()
                .map(Exit::Code)
                .or_else(|| status.terminating_signal().map(Exit::Signal))
        }))
    }

    /// Ends and reaps a child that can't be used. If even that fails there is nobody left to tell:
    /// the first error is the one that matters.
    fn abandon(&self, error: SpawnError) -> SpawnError {
        if self.kill().is_ok() {
            self.wait().ok();
        }
        error
    }
}

/// The descriptors between caller and child; all close-on-exec.
struct Pipes {
    status_reader: OwnedFd,
    status_writer: OwnedFd,
    go_reader: OwnedFd,
    go_writer: OwnedFd,
}

impl Pipes {
    fn new() -> io::Result<Self> {
        let (status_reader, status_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let (go_reader, go_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { status_reader, status_writer, go_reader, go_writer })
    }
}

/// The null-terminated table that execve(2) takes; valid as long as `strings`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn clone(spawn: &Spawn<'_>, plan: &mut Plan) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is made of integers, for all of which zero is a value.
    let mut args: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.flags = libc::CLONE_PIDFD as u64 | u64::from(spawn.namespaces.bits());
    // The child starts with all signals blocked: no handler of the caller ever runs in it.
    let mask = block_signals()?;
    // SAFETY: `args` is a valid clone_args of the given size; its pidfd points to `pidfd`, which
    // outlives the call; without CLONE_VM the child has its own copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    if pid == 0 {
        child::main(plan);
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    restore_signals(&mask)?;
    let pid = i32::try_from(result?).ok().and_then(Pid::from_raw);
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = pid.ok_or_else(|| io::Error::other("clone3 returned an impossible pid"))?;
    Ok(Child { pid, pidfd, exit: Mutex::new(None) })
}

fn block_signals() -> io::Result<libc::sigset_t> {
    let mut all = MaybeUninit::uninit();
    let mut old = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises `all`, which pthread_sigmask then reads; it writes `old` before it
    // returns 0, and only then is `old` taken as initialised.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr()) {
            0 => Ok(old.assume_init()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn restore_signals(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `mask` is an initialised set; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Maps every id that the caller's user namespace has to itself in the child's.
fn map_ids(pid: Pid) -> io::Result<()> {
    for map in ["uid_map", "gid_map"] {
        let identity: String = fs::read_to_string(format!("/proc/self/{map}"))?
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let (first, count) = (fields.next()?, fields.nth(1)?);
                Some(format!("{first} {first} {count}\n"))
            })
            .collect();
        fs::write(format!("/proc/{}/{map}", pid.as_raw_nonzero()), identity)?;
    }
    Ok(())
}

mod child;
#[cfg(test)]
mod tests;
