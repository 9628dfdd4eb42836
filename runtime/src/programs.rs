//! The two programs that a container needs beside this one: its shim and its monitor.

use std::{
    env,
    ffi::{CString, OsStr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use kata_config::{Artefact, Prefix};
pub use kata_engine_api::monitor::{Monitor, Network as MonitorNetwork, Readiness, Terminal, View};
use kata_engine_api::{
    dial::{HANDOVER_SOCKET, SHIM_SOCKET, bind_packet, bind_stream},
    monitor::{self, Plan},
};
use kata_sys::spawn::{Child, Lifetime, Spawn};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::{failure::Failure, id::ContainerId, sandbox_dir::SandboxDir};

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
    let creator = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(Failure::system("name this process to the shim"))?;
    spawn.fds =
        vec![null, null, null, shim.as_fd(), handover.as_fd(), dir.as_fd(), creator.as_fd()];
    spawn.new_session = true;
    spawn.start().map_err(|source| Failure::Start { program: "shim", source })
}

/// Whom a monitor stands for, and with what; it takes over the caller's stdio.
pub struct MonitorPlan<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// An additional process of it.
    pub exec: Option<&'a str>,
    /// Where the terminal is, if there is one.
    pub terminal: Terminal<'a>,
    /// Network namespace.
    pub network: MonitorNetwork<'a>,
    /// What is seen of the container by those who enter its namespaces.
    pub view: Option<View<'a>>,
}

/// Starts a monitor; [`Readiness::wait`] says when it may be used.
pub fn start_monitor(
    prefix: &Prefix,
    dir: &SandboxDir,
    plan: &MonitorPlan<'_>,
) -> Result<(Monitor, Readiness), Failure> {
    let program = prefix.find(Artefact::Monitor)?;
    let plan = Plan {
        container: plan.container.as_str(),
        exec: plan.exec,
        stdio: [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()],
        terminal: plan.terminal,
        network: plan.network,
        view: plan.view.clone(),
        directory: dir.as_fd(),
    };
    Ok(monitor::start(&program, &plan)?)
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
