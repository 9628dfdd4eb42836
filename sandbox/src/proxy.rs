//! Starts `kata-proxy` and speaks its control protocol.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use kata_sys::{
    scm,
    spawn::{Child, Spawn, SpawnError},
};
use rustix::{
    fs::{AtFlags, unlinkat},
    pipe::{PipeFlags, pipe_with},
};
use serde::Deserialize;
use thiserror::Error;
use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::{
    packet::{PacketError, PacketSocket},
    step::{InjectedFault, Step, Steps},
};

/// Bytes of the proxy's log that are passed on at once.
const LONGEST_WORD: usize = 4096;

/// Why the proxy did not start.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ProxyError {
    #[error("make control socket of the proxy")]
    Control(#[source] io::Error),
    #[error("make the pipe for what the proxy logs")]
    Log(#[source] io::Error),
    #[error("make vhost-user socket {name}")]
    Socket {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("program path {0:?} holds a NUL byte")]
    Program(PathBuf),
    #[error("start {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: SpawnError,
    },
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

/// What the proxy reports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromProxy {
    /// Jailed and serving.
    Ready {},
    /// A guest program connected to a listed port; the connection came as a descriptor.
    Connection {
        /// Host port.
        port: u32,
        /// Guest port.
        guest_port: u32,
    },
    /// Descriptors for the guest's cached inodes run short.
    InodePressure {
        /// Open descriptors.
        open: u64,
        /// As many as there can be.
        limit: u64,
    },
}

/// The VMM's ends of the vhost-user connections.
#[derive(Debug)]
pub struct VmmEnds {
    /// Of the vsock device.
    pub vsock: OwnedFd,
    /// Of the file system of container roots.
    pub roots: OwnedFd,
    /// Of the file system of volumes.
    pub volumes: OwnedFd,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The process.
    pub child: Child,
    /// Its control socket.
    pub control: PacketSocket,
}

/// What a proxy is started with.
#[derive(Debug)]
pub struct ProxyPlan<'a> {
    /// Host path of `kata-proxy`.
    pub program: &'a Path,
    /// Sandbox directory, in which sockets stand for the instant of their making.
    pub directory: &'a OwnedFd,
    /// Root of the shared tree.
    pub shared_tree: &'a OwnedFd,
}

/// Starts a proxy. Call it on a thread that never ends: the proxy dies with the thread.
///
/// # Errors
/// [`ProxyError`]; nothing is left then.
pub fn start(plan: &ProxyPlan<'_>, steps: &Steps) -> Result<(Proxy, VmmEnds), ProxyError> {
    steps.enter(Step::SpawnProxy)?;
    let (control, proxy_end) = scm::packet_pair().map_err(ProxyError::Control)?;
    let (vsock_listener, vsock) = connected(plan.directory, "vsock")?;
    let (roots_listener, roots) = connected(plan.directory, "roots")?;
    let (volumes_listener, volumes) = connected(plan.directory, "volumes")?;
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(ProxyError::Control)?;
    let (said, stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| ProxyError::Log(e.into()))?;
    let said = pipe::Receiver::from_owned_fd(said).map_err(ProxyError::Log)?;
    let program = c_string(plan.program.as_os_str().as_bytes(), plan.program)?;
    let spawn = Spawn {
        arguments: vec![c_string(b"kata-proxy", plan.program)?],
        fds: vec![
            null.as_fd(),
            null.as_fd(),
            stderr.as_fd(),
            proxy_end.as_fd(),
            vsock_listener.as_fd(),
            roots_listener.as_fd(),
            volumes_listener.as_fd(),
            plan.shared_tree.as_fd(),
        ],
        new_session: true,
        ..Spawn::new(program)
    };
    let control = PacketSocket::new(control)?;
    let child = spawn
        .start()
        .map_err(|source| ProxyError::Spawn { program: plan.program.into(), source })?;
    tokio::spawn(pass_on(said));
    let proxy = Proxy { child, control };
    Ok((proxy, VmmEnds { vsock, roots, volumes }))
}

/// What the proxy says goes the way of all that is logged here, and so is bounded as that is: a guest can make it talk.
async fn pass_on(mut said: pipe::Receiver) {
    let (mut buffer, mut held) = ([0; LONGEST_WORD], 0);
    // A full buffer is told before more is read, so there is room.
    while let Ok(length @ 1..) = said.read(&mut buffer[held..]).await {
        held += length;
        let whole = match buffer[..held].iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if held == LONGEST_WORD => held,
            None => continue,
        };
        tell(&buffer[..whole]);
        buffer.copy_within(whole..held, 0);
        held -= whole;
    }
    tell(&buffer[..held]);
}

/// The proxy speaks of what is wrong, and when it panics: nobody may have asked for less.
fn tell(said: &[u8]) {
    for line in String::from_utf8_lossy(said).lines() {
        tracing::error!("proxy: {line}");
    }
}

/// A listener and the one connection that it will ever accept; its name is gone before anybody else could dial it.
fn connected(
    directory: &OwnedFd,
    name: &'static str,
) -> Result<(UnixListener, OwnedFd), ProxyError> {
    let failed = |source| ProxyError::Socket { name, source };
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let stream = UnixStream::connect(&path).map_err(failed);
    unlinkat(directory, name, AtFlags::empty()).map_err(|e| failed(e.into()))?;
    Ok((listener, stream?.into()))
}

fn c_string(bytes: &[u8], program: &Path) -> Result<CString, ProxyError> {
    CString::new(bytes).map_err(|_| ProxyError::Program(program.into()))
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Debug,
        fs::File,
        io::Write,
        sync::{Arc, Mutex},
    };

    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::net::unix::pipe::Receiver;
    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    use super::pass_on;

    /// What was logged, line by line.
    #[derive(Default, Clone)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Visit for Lines {
        fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[tokio::test]
    async fn what_the_proxy_says_is_logged_to_its_end() {
        let lines = Lines::default();
        let (said, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let saying = std::thread::spawn(move || {
            let mut writer = File::from(writer);
            for number in 0..20_000 {
                writeln!(writer, "word {number}").unwrap();
            }
        });
        let _ours = tracing::subscriber::set_default(lines.clone());
        pass_on(Receiver::from_owned_fd(said).unwrap()).await;
        saying.join().unwrap();
        let logged = lines.0.lock().unwrap();
        let spoken: Vec<String> =
            (0..20_000).map(|number| format!("proxy: word {number}")).collect();
        assert!(*logged == spoken, "{} lines: {:?} …", logged.len(), logged.first());
    }
}
