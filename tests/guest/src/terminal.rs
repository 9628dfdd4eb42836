//! A terminal with a program in its foreground, as a person has one.

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{Capture, capture, pace::ceiling};

/// Nothing that a test does at a terminal takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A pseudo-terminal, and the program that is the leader of its session.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    child: Option<Child>,
    /// What is on the screen.
    pub screen: Capture,
}

impl Terminal {
    /// A terminal of 24 rows and 80 columns, with nobody at it.
    pub fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let screen = Capture::of(master.try_clone().unwrap());
        let terminal = Self { master, slave, child: None, screen };
        terminal.resize(24, 80);
        terminal
    }

    /// The same around a master that somebody else has made.
    pub fn of_master(master: OwnedFd) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let screen = Capture::of(master.try_clone().unwrap());
        Self { master, slave, child: None, screen }
    }

    /// The one whose master comes over a console socket.
    pub fn from_console_socket(listener: &UnixListener) -> Self {
        Self::of_master(receive_master(listener))
    }

    /// Starts a program at the terminal: in a session of its own, with this as its controlling terminal.
    pub fn start(&mut self, command: &Command) {
        let slave = || Stdio::from(self.slave.try_clone().unwrap());
        // The only way to a controlling terminal that needs no code between fork and exec. It does not fork.
        let mut at_terminal = Command::new("setsid");
        at_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        at_terminal.stdin(slave()).stdout(slave()).stderr(slave());
        self.child = Some(at_terminal.spawn().unwrap());
    }

    /// Types.
    pub fn type_in(&self, keys: &str) {
        capture::write(&self.master, keys.as_bytes());
    }

    /// Types what no key has.
    pub fn type_bytes(&self, bytes: &[u8]) {
        capture::write(&self.master, bytes);
    }

    /// Changes the size, as a window does.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Modes of the terminal as they are now.
    pub fn modes(&self) -> Termios {
        tcgetattr(self.slave.as_fd()).unwrap()
    }

    /// Sends a signal to the program, not to the terminal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Waits for the end of the program; its exit code.
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let timeout = Timespec::try_from(ceiling(DEADLINE)).unwrap();
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_ne!(ended, 0, "did not end; on the screen: {:?}", self.screen.text());
        let status = self.child.take().unwrap().wait().unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

/// Receives the one descriptor that comes over a console socket.
fn receive_master(listener: &UnixListener) -> OwnedFd {
    let (connection, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let received =
        recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::empty());
    assert!(received.unwrap().bytes > 0, "an engine wants at least a byte with it");
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    fds.next().unwrap()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It takes its container along, if it can.
            let pid = Pid::from_child(child);
            kill_process(pid, Signal::TERM).ok();
            let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)).ok();
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}
