//! The child's side of a spawn: from its first instruction to execve.
//!
//! System calls only; see the parent module for why.

use std::{
    ffi::c_char,
    mem::{MaybeUninit, size_of},
    os::fd::RawFd,
    ptr,
};

use crate::syscall_filter::LaidOut;

/// Step number and errno, in one write that a pipe never splits.
pub(super) const REPORT: usize = 1 + size_of::<i32>();

/// The child's steps; the number travels over the status pipe.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Execute = 0,
    WaitForIds,
    FollowCaller,
    OutliveCaller,
    Session,
    Descriptors,
    Signals,
    Filters,
}

impl Step {
    /// What the step with this number attempts; `None` for execve itself.
    pub(super) fn name(number: u8) -> Option<&'static str> {
        const NAMES: [&str; 7] = [
            "wait for its id maps",
            "follow its parent into death",
            "find its parent alive",
            "open a session",
            "arrange its descriptors",
            "reset its signals",
            "load its filters of system calls",
        ];
        NAMES.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// All that the child reads; filled before the clone, so that it allocates nothing.
pub(super) struct Plan {
    pub(super) sources: Vec<RawFd>,
    /// Room for the child: where its sources are while the low numbers are rearranged.
    pub(super) moved: Vec<RawFd>,
    pub(super) status: RawFd,
    pub(super) go: Option<RawFd>,
    pub(super) go_writer: RawFd,
    pub(super) caller: Option<RawFd>,
    pub(super) new_session: bool,
    pub(super) filters: Vec<LaidOut>,
    pub(super) program: *const c_char,
    pub(super) arguments: Vec<*const c_char>,
    pub(super) environment: Vec<*const c_char>,
}

/// The child from its first instruction on: system calls only.
pub(super) fn main(plan: &mut Plan) -> ! {
    let step = settle(plan);
    // SAFETY: errno is this thread's own; a report of `REPORT` bytes is on the stack; _exit runs no
    // handlers of the process that was copied.
    unsafe {
        let errno = (*libc::__errno_location()).to_ne_bytes();
        let report: [u8; REPORT] = [step as u8, errno[0], errno[1], errno[2], errno[3]];
        libc::write(plan.status, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Runs the steps up to execve; returns only to say which one failed, with errno set.
fn settle(plan: &mut Plan) -> Step {
    if let Err(step) = wait_for_ids(plan)
        .and_then(|()| follow_caller(plan))
        .and_then(|()| lead_session(plan))
        .and_then(|()| arrange_descriptors(plan))
        .and_then(|()| reset_signals())
        .and_then(|()| load_filters(plan))
    {
        return step;
    }
    // SAFETY: program, arguments and environment are NUL-terminated, the tables end with null, and all
    // are copies of what the caller borrows for the length of `Spawn::start`.
    unsafe { libc::execve(plan.program, plan.arguments.as_ptr(), plan.environment.as_ptr()) };
    Step::Execute
}

fn wait_for_ids(plan: &Plan) -> Result<(), Step> {
    let Some(go) = plan.go else { return Ok(()) };
    let mut byte = 0_u8;
    // SAFETY: closes this process's own copy of the writing end, so that the caller's death is an end of
    // file; then reads at most one byte into `byte`.
    let length = unsafe {
        libc::close(plan.go_writer);
        libc::read(go, (&raw mut byte).cast(), 1)
    };
    if length == 1 { Ok(()) } else { Err(Step::WaitForIds) }
}

fn follow_caller(plan: &Plan) -> Result<(), Step> {
    let Some(caller) = plan.caller else { return Ok(()) };
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(Step::FollowCaller);
    }
    // The caller may have died before the signal was armed. getppid() is no help in a new pid namespace,
    // where it is 0; a pidfd becomes readable.
    let mut poll = libc::pollfd { fd: caller, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, on this stack.
    match unsafe { libc::poll(&raw mut poll, 1, 0) } {
        0 => Ok(()),
        _ => Err(Step::OutliveCaller),
    }
}

fn lead_session(plan: &Plan) -> Result<(), Step> {
    // SAFETY: no arguments, no memory.
    if plan.new_session && unsafe { libc::setsid() } < 0 {
        return Err(Step::Session);
    }
    Ok(())
}

/// Puts source `i` at number `i`, the status pipe (close-on-exec) right above, and closes the rest.
fn arrange_descriptors(plan: &mut Plan) -> Result<(), Step> {
    let count = plan.sources.len() as RawFd;
    // Sources and targets overlap: first everything goes up, out of the way.
    for (source, moved) in plan.sources.iter().zip(&mut plan.moved) {
        *moved = move_up(*source, count + 1)?;
    }
    let status = move_up(plan.status, count + 1)?;
    for (number, moved) in (0..).zip(&plan.moved) {
        // SAFETY: dup2 on numbers of this process's own table, which nothing else shares.
        if unsafe { libc::dup2(*moved, number) } < 0 {
            return Err(Step::Descriptors);
        }
    }
    // SAFETY: as above; close_range takes numbers only.
    let closed = unsafe {
        if libc::dup3(status, count, libc::O_CLOEXEC) < 0 {
            return Err(Step::Descriptors);
        }
        plan.status = count;
        libc::syscall(libc::SYS_close_range, count + 1, libc::c_uint::MAX, 0)
    };
    if closed == 0 { Ok(()) } else { Err(Step::Descriptors) }
}

fn move_up(fd: RawFd, lowest: RawFd) -> Result<RawFd, Step> {
    // SAFETY: F_DUPFD_CLOEXEC takes numbers only.
    match unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest) } {
        fd if fd >= 0 => Ok(fd),
        _ => Err(Step::Descriptors),
    }
}

/// Last: they are about the program.
fn load_filters(plan: &Plan) -> Result<(), Step> {
    if plan.filters.iter().all(LaidOut::load) { Ok(()) } else { Err(Step::Filters) }
}

/// Default dispositions (execve keeps ignored signals, and Rust ignores SIGPIPE) and an empty mask.
fn reset_signals() -> Result<(), Step> {
    // The kernel's own struct sigaction of x86-64 and arm64, all zero: SIG_DFL without flags. glibc's
    // wrapper refuses signals 32 and 33, which a careless ancestor may have left ignored.
    let default = [0_u64; 4];
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: reads one struct sigaction and writes none. Fails for SIGKILL and SIGSTOP only.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that sigprocmask reads.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(Step::Signals) }
}
