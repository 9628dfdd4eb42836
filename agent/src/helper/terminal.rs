//! The terminal of a process: a pair in the container's own devpts, so that its name means something there.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, Uid, fchown},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{
    mounts,
    options::Extent,
    paths::{Leaf, Root},
};
use crate::{
    order::{Failure, Step, TerminalSize},
    spec::Process,
};

/// Makes a terminal the process's own: controlling, on its standard streams, in its size. Returns the master.
///
/// The caller leads a session and stands in the container's root.
pub fn acquire(process: &Process, size: TerminalSize) -> Result<Terminal, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .step(|| "open /dev/pts/ptmx of the container")?;
    unlockpt(&master).step(|| "unlock the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).step(|| "open the terminal")?;
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).step(|| "set the size of the terminal")?;
    let user = Uid::from_raw(process.user.uid);
    fchown(&slave, Some(user), None).step(|| "give the terminal to the user")?;
    ioctl_tiocsctty(&slave).step(|| "take the terminal as the controlling one")?;
    rustix::stdio::dup2_stdin(&slave).step(|| "put the terminal on stdin")?;
    rustix::stdio::dup2_stdout(&slave).step(|| "put the terminal on stdout")?;
    rustix::stdio::dup2_stderr(&slave).step(|| "put the terminal on stderr")?;
    Ok(Terminal { master, slave })
}

/// Both ends.
#[derive(Debug)]
pub struct Terminal {
    /// The agent's end.
    pub master: OwnedFd,
    slave: OwnedFd,
}

/// Makes the file that a container's terminal is mounted on, while its `/dev` can be written.
pub fn make_place(root: &Root) -> Result<OwnedFd, Failure> {
    root.make(Path::new("/dev/console"), Leaf::File).step(|| "make /dev/console")
}

impl Terminal {
    /// Makes it `/dev/console` of the container.
    pub fn become_console(&self) -> Result<(), Failure> {
        let place = make_place(&Root::open(Path::new("/")).step(|| "open the root")?)?;
        mounts::clone_opened(self.slave.as_fd(), Extent::Mount)
            .and_then(|terminal| mounts::attach(terminal, place))
            .step(|| "mount the terminal on /dev/console")
    }
}
