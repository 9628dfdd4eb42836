//! How a monitor is started, by the command line as by the shim: its arguments, and what it inherits.

use std::{
    ffi::{CString, NulError, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use kata_sys::{
    scm::packet_pair,
    spawn::{Child, Lifetime, Spawn, SpawnError},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    thread::UnshareFlags,
};
use thiserror::Error;

/// Longest message of a monitor that gives up: a line.
const MAX_MESSAGE: u64 = 4096;

/// Why a monitor is not there.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MonitorError {
    #[error("{0:?} contains a zero byte")]
    Word(String, #[source] NulError),
    #[error("make the monitor's sockets")]
    Prepare(#[source] io::Error),
    #[error("start the monitor")]
    Start(#[source] SpawnError),
    #[error("hear from the monitor")]
    Hear(#[source] io::Error),
    #[error("monitor: {0}")]
    Unready(String),
}

/// Whom a monitor stands for, and with what.
pub struct Plan<'a> {
    /// The container.
    pub container: &'a str,
    /// An additional process of it.
    pub exec: Option<&'a str>,
    /// What it has for the container's stdio.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Where the terminal is, if there is one.
    pub terminal: Terminal<'a>,
    /// Network namespace.
    pub network: Network<'a>,
    /// What is seen of the container by those who enter the monitor's namespaces; without it they are the caller's.
    pub view: Option<View<'a>>,
    /// Where it leaves the end that no shim could record.
    pub directory: BorrowedFd<'a>,
}

/// The trees of a container.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Its root.
    pub root: BorrowedFd<'a>,
    /// Its volumes, in the order of their mounts.
    pub volumes: Vec<(BorrowedFd<'a>, &'a Path)>,
}

/// The terminal of a process on the host.
#[derive(Debug, Clone, Copy)]
pub enum Terminal<'a> {
    /// None: the standard streams are what they are.
    None,
    /// The caller's own.
    Callers,
    /// To be made, and its master sent to this connected socket.
    New(BorrowedFd<'a>),
}

/// Network namespace of a monitor.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    /// The caller's.
    Callers,
    /// A new one.
    New,
    /// This one.
    Join(BorrowedFd<'a>),
}

/// A monitor that was started.
#[derive(Debug)]
pub struct Monitor {
    /// The process.
    pub child: Child,
    /// The end of its control socket that goes to the shim.
    pub control: OwnedFd,
}

impl Monitor {
    /// Its pid, as engines want it.
    pub fn pid(&self) -> u32 {
        self.child.pid.as_raw_nonzero().get().unsigned_abs()
    }
}

/// Where a monitor says that it is ready.
#[derive(Debug)]
pub struct Readiness(OwnedFd);

impl Readiness {
    /// Blocks until the monitor says that it is ready, or why it is not.
    ///
    /// # Errors
    /// [`MonitorError::Hear`], [`MonitorError::Unready`].
    pub fn wait(self) -> Result<(), MonitorError> {
        let mut answer = String::new();
        File::from(self.0)
            .take(MAX_MESSAGE)
            .read_to_string(&mut answer)
            .map_err(MonitorError::Hear)?;
        match answer.trim_end() {
            "ok" => Ok(()),
            "" => Err(MonitorError::Unready("it died before it was ready".to_owned())),
            message => {
                let message = message.strip_prefix("error: ").unwrap_or(message);
                Err(MonitorError::Unready(message.to_owned()))
            }
        }
    }
}

/// Starts the monitor `program`; [`Readiness::wait`] says when it may be used.
///
/// # Errors
/// [`MonitorError`].
pub fn start(program: &Path, plan: &Plan<'_>) -> Result<(Monitor, Readiness), MonitorError> {
    let (ours, theirs) = packet_pair().map_err(MonitorError::Prepare)?;
    let (ready, ready_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| MonitorError::Prepare(e.into()))?;
    let mut spawn = Spawn::new(c_string(program.as_os_str())?);
    spawn.lifetime = Lifetime::Own;
    let [stdin, stdout, stderr] = plan.stdio;
    spawn.fds = vec![stdin, stdout, stderr, theirs.as_fd(), plan.directory, ready_writer.as_fd()];
    let mut words = vec!["--container".to_owned(), plan.container.to_owned()];
    words.extend(options(plan, &mut spawn.fds));
    for word in words {
        spawn.arguments.push(c_string(OsStr::new(&word))?);
    }
    if let Some(view) = &plan.view {
        spawn.namespaces = UnshareFlags::NEWNS
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP;
        // On its caller's terminal it is one of a group of processes, which have no numbers in another pid namespace.
        if !matches!(plan.terminal, Terminal::Callers) {
            spawn.namespaces |= UnshareFlags::NEWPID;
        }
        let mut inherit = |option: &str, fd, destination: &Path| {
            spawn.arguments.push(c_string(OsStr::new(option))?);
            spawn.arguments.push(c_string(OsStr::new(&spawn.fds.len().to_string()))?);
            spawn.arguments.push(c_string(destination.as_os_str())?);
            spawn.fds.push(fd);
            Ok(())
        };
        inherit("--tree", view.root, Path::new("/"))?;
        view.volumes.iter().try_for_each(|(fd, path)| inherit("--tree", *fd, path))?;
    }
    let child = spawn.start().map_err(MonitorError::Start)?;
    Ok((Monitor { child, control: ours }, Readiness(ready)))
}

/// What follows `--container ID`; descriptors are added behind the fixed ones.
fn options<'a>(plan: &Plan<'a>, fds: &mut Vec<BorrowedFd<'a>>) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(exec) = plan.exec {
        words.extend(["--exec".to_owned(), exec.to_owned()]);
    }
    let mut inherit = |fd: BorrowedFd<'a>| {
        fds.push(fd);
        (fds.len() - 1).to_string()
    };
    match plan.terminal {
        Terminal::None => {}
        Terminal::Callers => words.push("--terminal".to_owned()),
        Terminal::New(socket) => words.extend([
            "--terminal".to_owned(),
            "--console-socket-fd".to_owned(),
            inherit(socket),
        ]),
    }
    match plan.network {
        Network::Callers => {}
        Network::New => words.push("--new-network".to_owned()),
        Network::Join(namespace) => {
            words.extend(["--network-fd".to_owned(), inherit(namespace)]);
        }
    }
    words
}

fn c_string(word: &OsStr) -> Result<CString, MonitorError> {
    CString::new(word.as_bytes())
        .map_err(|source| MonitorError::Word(word.to_string_lossy().into_owned(), source))
}
