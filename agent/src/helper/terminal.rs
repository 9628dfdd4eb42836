//! The terminal of a process: a pair in the container's own devpts, so that its name means something there.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, FsWord, Mode, OFlags, Uid, fchown, fstat, fstatfs, makedev},
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

const DEVPTS_MAGIC: FsWord = 0x1cd1;

/// Makes a terminal the process's own: controlling, on its standard streams, in its size. Returns the master.
///
/// The caller leads a session and stands in the container's root.
pub fn acquire(process: &Process, size: TerminalSize) -> Result<Terminal, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .step(|| "open /dev/pts/ptmx of the container")?;
    if !is_master(&master).step(|| "look at /dev/pts/ptmx of the container")? {
        return Err(Failure::invalid("/dev/pts/ptmx of the container is not that of a devpts"));
    }
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

/// True for what the kernel answers for. A container may have mounted there what answers in its own way.
fn is_master(file: &OwnedFd) -> rustix::io::Result<bool> {
    let stat = fstat(file)?;
    Ok(fstatfs(file)?.f_type == DEVPTS_MAGIC
        && FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(5, 2))
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

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, open};

    use super::is_master;

    #[test]
    fn a_master_is_one_of_devpts() {
        let open = |path| open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        assert_eq!(is_master(&open("/dev/null").unwrap()), Ok(false));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(is_master(&open(file.path().to_str().unwrap()).unwrap()), Ok(false));
        // Not every host lets everybody open it.
        if let Ok(master) = open("/dev/pts/ptmx") {
            assert_eq!(is_master(&master), Ok(true));
        }
    }
}
