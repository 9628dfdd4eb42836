//! A copy of a single-threaded process, in new namespaces: how a container's init comes to be.
//!
//! [`spawn`](crate::spawn) starts programs from any process; [`fork`] is for a helper that goes on in Rust on
//! both sides. Rust code may only go on in a copy whose original had one thread (no lock is held by a thread that
//! the copy lacks), so that is checked first.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use rustix::{process::Pid, thread::UnshareFlags};

/// Of `linux/sched.h`; the constant of the libc crate is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How the copy differs from the original.
#[derive(Debug, Default)]
pub struct Fork<'a> {
    /// Namespaces that are new in the copy.
    pub namespaces: Option<UnshareFlags>,
    /// cgroup v2 directory that the copy is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The original, with the copy's id in the original's pid namespace, and its pidfd.
    Original(Pid, OwnedFd),
    /// The copy.
    Copy,
}

/// Copies the calling process; the copy is a child of the caller's *parent* (CLONE_PARENT), who reaps it.
///
/// # Errors
/// `Unsupported` when the caller has more than one thread; those of clone3(2), `EBUSY` when the cgroup
/// has controllers enabled for its children.
pub fn fork(settings: &Fork<'_>) -> io::Result<Forked> {
    // SAFETY: unshare(CLONE_THREAD) changes nothing: it fails unless the caller is the only thread. (It needs
    // no /proc, which may be another pid namespace's by now.)
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "more than one thread"));
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    flags |= settings.namespaces.map_or(0, |namespaces| u64::from(namespaces.bits()));
    // SAFETY: clone_args is plain integers, for which all-zero is a valid value.
    let mut arguments: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    arguments.pidfd = (&raw mut pidfd) as u64;
    if let Some(cgroup) = settings.cgroup {
        flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    arguments.flags = flags;
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the copy has its own memory. The caller
    // is the only thread (checked above), so no lock in the copy is held by a thread that it lacks. The
    // arguments and `pidfd` outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Copy),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("clone3 gave an impossible pid"))?;
            // SAFETY: the kernel stored a new descriptor there (CLONE_PIDFD), which nobody else owns.
            Ok(Forked::Original(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// Moves the calling thread into new namespaces, with the process if there is but one; `FILES` is ignored.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES no thread can lose sight of a descriptor of another.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?)
}

/// Replaces the process by `program`; returns only what went wrong.
///
/// `arguments` includes the name of the program; nothing is added to `environment`.
pub fn execute(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let ends = strings.iter().map(|string| string.as_ptr());
        ends.chain([ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings are NUL-terminated, both tables end with null, and they outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives every signal its default action and blocks none, as a new program expects.
///
/// (Rust ignores SIGPIPE, and an ignored signal stays ignored over execve.)
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SIGKILL, SIGSTOP and the signals that the C library keeps for itself can't be changed: EINVAL.
        // SAFETY: SIG_DFL installs no handler.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, which outlives both calls.
    let result = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on close-on-exec, so that a program executed next inherits none of them.
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes three integers; with CLOEXEC nothing is closed, so no owner loses its descriptor.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Number of the descriptor that [`go_on_with_only`] keeps.
const KEPT: libc::c_int = 3;

/// Closes every descriptor but the standard streams and `kept`, and ends the process after `last`, with the code that it
/// returns; `last` gets a duplicate of `kept`, which is close-on-exec.
///
/// For a copy right before [`execute`]: execve looks its program up before it closes what is marked, and `/proc/self/fd` has a
/// name for everything that is open. Nothing that the callers own is dropped any more; `last` itself must neither own nor use
/// another descriptor.
///
/// `last` gets an error, with `kept` still open, where that could not be done: those of dup(2) and close_range(2).
pub fn go_on_with_only(
    kept: BorrowedFd<'_>,
    last: impl FnOnce(io::Result<OwnedFd>) -> libc::c_int,
) -> ! {
    let code = last(close_all_but(kept.as_raw_fd()));
    // SAFETY: takes an integer; what the process that was copied does at its exit is not this one's to do.
    unsafe { libc::_exit(code) }
}

fn close_all_but(kept: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes integers. The descriptor that had the number before is closed: see below.
    if kept != KEPT && unsafe { libc::dup3(kept, KEPT, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes three integers. The only caller never returns, and its callers' `last` has no descriptor but what it is
    // given: whoever owned one that is closed here is neither used nor dropped again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, KEPT + 1, libc::c_uint::MAX, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, by the call above or as `kept` itself, whose owner is not used again either.
    Ok(unsafe { OwnedFd::from_raw_fd(KEPT) })
}

/// A key by its serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyring(libc::c_long);

/// Joins the session keyring of this name, so that keys of the parent's are out of reach: one that the caller may search, else
/// a new one.
///
/// # Errors
/// `ENOSYS` on a kernel without keys; `EDQUOT`.
pub fn join_session_keyring(name: &CString) -> io::Result<Keyring> {
    // SAFETY: keyctl(KEYCTL_JOIN_SESSION_KEYRING) reads the NUL-terminated name.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr(), 0, 0, 0)
    };
    if result >= 0 { Ok(Keyring(result)) } else { Err(io::Error::last_os_error()) }
}

/// Who may find a keyring by its name, beside those who have it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finder {
    /// Processes of its user.
    User,
    /// All of its user namespace.
    Other,
}

impl Keyring {
    /// Lets others find it, and join it by that. All other rights become those of a new session keyring.
    ///
    /// # Errors
    /// `EACCES` for one that belongs to another user.
    pub fn let_find(self, who: Finder) -> io::Result<()> {
        /// Of `linux/key.h`: all for the possessor; view, read and link for the user.
        const OF_A_NEW_ONE: libc::c_ulong = 0x3f13_0000;
        let search: libc::c_ulong = match who {
            Finder::User => 0x0008_0000,
            Finder::Other => 0x0000_0008,
        };
        // SAFETY: keyctl(KEYCTL_SETPERM) takes integers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                libc::KEYCTL_SETPERM,
                self.0,
                OF_A_NEW_ONE | search,
                0,
                0,
            )
        };
        if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Sets the execution domain (personality(2)), which survives execve.
///
/// # Errors
/// Those of personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: takes an integer.
    let result = unsafe { libc::personality(libc::c_ulong::from(domain)) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
