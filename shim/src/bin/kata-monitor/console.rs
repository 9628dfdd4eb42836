//! The terminal that a container talks to on the host.
//!
//! An engine that asks for a terminal gives a console socket: the monitor makes a pty, sends the master there and keeps
//! the slave, raw, as its controlling terminal: the guest's own pty does the line editing, and the engine's resize of the
//! master arrives here as SIGWINCH. `kata-runtime run -t` gives its own terminal as standard streams instead.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_engine_api::handover::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr},
};

/// What runc's peers find in the packet that carries the master: its file name.
const MASTER_NAME: &[u8] = b"/dev/ptmx";

/// Makes a pty, gives its master away, and makes the slave this session's terminal and all its standard streams.
pub fn open(console_socket: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // Of the instance itself: whoever gets the master finds its slave by that, and /dev is not to be seen here much longer.
    let of_instance = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match rustix::fs::open("/dev/pts/ptmx", of_instance, Mode::empty()) {
        Ok(master) => master,
        Err(_) => openpt(flags)?,
    };
    grantpt(&master)?;
    unlockpt(&master)?;
    // By descriptor, not by name: /dev/pts may be another instance's here.
    let slave: OwnedFd = ioctl_tiocgptpeer(&master, flags)?;
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    ioctl_tiocsctty(&slave)?;
    dup2_stdin(&slave)?;
    dup2_stdout(&slave)?;
    dup2_stderr(&slave)?;
    kata_sys::scm::send(console_socket, MASTER_NAME, &[master.as_fd()])
}

/// Size of the terminal among the standard streams; `None` when there is none or it has no size yet.
pub fn size() -> Option<TerminalSize> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let size = streams.iter().find_map(|stream| tcgetwinsize(stream).ok())?;
    let size = TerminalSize { rows: size.ws_row, columns: size.ws_col };
    (size.rows > 0 && size.columns > 0).then_some(size)
}
