//! The two programs that a container needs beside this one: its shim and its monitor.

use std::{
    env,
    ffi::{CString, OsStr},
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use kata_config::{Artefact, Prefix};
use kata_engine_api::dial::{HANDOVER_SOCKET, SHIM_SOCKET, bind_packet, bind_stream};
use kata_sys::{
    scm::packet_pair,
    spawn::{Child, Lifetime, Spawn},
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{failure::Failure, id::ContainerId, sandbox_dir::SandboxDir};

/// Longest message of a monitor that gives up: a line.
const MAX_MESSAGE: u64 = 4096;

/// Binds the sockets of a sandbox and starts the shim that serves them.
pub fn start_shim(
    prefix: &Prefix,
    dir: &SandboxDir,
    environment: &[String],
) -> Result<Child, Failure> {
    let program = prefix.find(Artefact::Shim)?;
    let failed = |name: &str| Failure::host(format!("make {}/{name}", dir.path.display()));
    let shim = bind_stream(dir.as_fd(), SHIM_SOCKET).map_err(failed(SHIM_SOCKET))?;
    let handover = bind_packet(dir.as_fd(), HANDOVER_SOCKET).map_err(failed(HANDOVER_SOCKET))?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(Failure::system("open /dev/null"))?;
    let mut spawn = prepared(&program, [OsStr::new("serve")])?;
    for variable in environment {
        spawn.environment.push(c_string(OsStr::new(variable))?);
    }
    // QEMU is searched for in PATH; everything else has its place beside the program.
    if let Some(path) = env::var_os("PATH") {
        spawn.environment.push(c_string(OsStr::from_bytes(&[b"PATH=", path.as_bytes()].concat()))?);
    }
    let null = null.as_fd();
    spawn.fds = vec![null, null, null, shim.as_fd(), handover.as_fd(), dir.as_fd()];
    spawn.new_session = true;
    spawn.start().map_err(|source| Failure::Start { program: "shim", source })
}

/// Whom a monitor stands for, and with what.
pub struct MonitorPlan<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// An additional process of it.
    pub exec: Option<&'a str>,
    /// Where the terminal is, if there is one.
    pub terminal: Terminal<'a>,
    /// Network namespace.
    pub network: MonitorNetwork<'a>,
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
pub enum MonitorNetwork<'a> {
    /// The caller's.
    Callers,
    /// A new one.
    New,
    /// This one.
    Join(BorrowedFd<'a>),
}

/// A monitor that is ready.
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

/// Starts a monitor; [`ready`] says when it may be used.
pub fn start_monitor(
    prefix: &Prefix,
    dir: &SandboxDir,
    plan: &MonitorPlan<'_>,
) -> Result<(Monitor, OwnedFd), Failure> {
    let program = prefix.find(Artefact::Monitor)?;
    let (ours, theirs) = packet_pair().map_err(Failure::host("make the control socket"))?;
    let (ready, ready_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(Failure::system("make a pipe"))?;
    let mut spawn = prepared(&program, ["--container".as_ref(), plan.container.as_str().as_ref()])?;
    spawn.fds = vec![
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
        theirs.as_fd(),
        dir.as_fd(),
        ready_writer.as_fd(),
    ];
    for word in options(plan, &mut spawn.fds) {
        spawn.arguments.push(c_string(OsStr::new(&word))?);
    }
    let child = spawn.start().map_err(|source| Failure::Start { program: "monitor", source })?;
    Ok((Monitor { child, control: ours }, ready))
}

/// What follows `--container ID`; descriptors are added behind the fixed ones.
fn options<'a>(plan: &MonitorPlan<'a>, fds: &mut Vec<BorrowedFd<'a>>) -> Vec<String> {
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
        MonitorNetwork::Callers => {}
        MonitorNetwork::New => words.push("--new-network".to_owned()),
        MonitorNetwork::Join(namespace) => {
            words.extend(["--network-fd".to_owned(), inherit(namespace)]);
        }
    }
    words
}

/// Waits for a monitor's word that it is ready.
pub fn ready(pipe: OwnedFd) -> Result<(), Failure> {
    let mut answer = String::new();
    std::fs::File::from(pipe)
        .take(MAX_MESSAGE)
        .read_to_string(&mut answer)
        .map_err(Failure::host("hear from the monitor"))?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(Failure::Monitor("it died before it was ready".to_owned())),
        message => {
            Err(Failure::Monitor(message.strip_prefix("error: ").unwrap_or(message).to_owned()))
        }
    }
}

/// The network namespace that a monitor is in.
pub fn network_of(monitor: &Monitor) -> Result<OwnedFd, Failure> {
    open_namespace(format!("/proc/{}/ns/net", monitor.pid()).as_ref())
}

/// Opens a network namespace by its path, and nothing that is not one.
pub fn open_namespace(path: &Path) -> Result<OwnedFd, Failure> {
    let what = || format!("open the network namespace {}", path.display());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    // A fifo in its place must not hold us up.
    let flags = flags | rustix::fs::OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(Failure::system(what()))?;
    // The kind of namespace is checked by whoever enters it.
    if !rustix::fs::fstatfs(&fd).is_ok_and(|stat| stat.f_type == NSFS_MAGIC) {
        return Err(Failure::Usage(format!("{} is not a network namespace", path.display())));
    }
    Ok(fd)
}

/// Of `linux/magic.h`: the file system that namespaces are files of.
const NSFS_MAGIC: i64 = 0x6e73_6673;

fn prepared<'a, 'w>(
    program: &Path,
    words: impl IntoIterator<Item = &'w OsStr>,
) -> Result<Spawn<'a>, Failure> {
    let mut spawn = Spawn::new(c_string(program.as_os_str())?);
    for word in words {
        spawn.arguments.push(c_string(word)?);
    }
    spawn.lifetime = Lifetime::Own;
    Ok(spawn)
}

fn c_string(word: &OsStr) -> Result<CString, Failure> {
    CString::new(word.as_bytes())
        .map_err(|_| Failure::Usage(format!("{} contains a zero byte", word.display())))
}
