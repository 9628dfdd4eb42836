//! Puts the devices behind their sockets, and waits for the first thing that ends the sandbox.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use vhost::vhost_user::Listener;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, bitmap::BitmapReplace};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap, mmap::NewBitmap};

use crate::{
    control::{Control, Message},
    fs::{Share, ShareError, pressure::Pressure},
    vsock::{backend::VsockBackend, muxer::Identity},
};

/// What the proxy needs besides its configuration; see docs/design/0001.
#[derive(Debug)]
pub struct Sockets {
    /// To the shim.
    pub control: Control,
    /// Listener of the vsock device.
    pub vsock: OwnedFd,
    /// Listener of the share of container roots.
    pub roots: OwnedFd,
    /// Listener of the share of volumes.
    pub volumes: OwnedFd,
}

/// Where the shared tree is.
#[derive(Debug)]
pub struct Tree {
    /// Its path in the jail.
    pub path: String,
    /// `/proc/self/fd`, once for each share.
    pub proc_self_fd: [File; 2],
    /// Descriptors that the process may have.
    pub descriptors: u64,
}

/// Why the proxy ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The VMM has closed the connection of a device.
    Vmm,
    /// The shim has closed the control socket.
    Shim,
    /// A device has failed; the text says how.
    Device(String),
}

/// A proxy that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The vsock device cannot be made.
    #[error("cannot make the vsock device")]
    Vsock(#[source] io::Error),
    /// A share cannot be served.
    #[error("cannot serve a share")]
    Share(#[from] ShareError),
    /// A device cannot take its VMM's connection.
    #[error("cannot serve the {name} device: {cause}")]
    Connect {
        /// Which one.
        name: &'static str,
        /// Why; as text, for the crate's own error may hold a panic that threads can't share.
        cause: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The shim cannot be told that the devices work.
    #[error("cannot tell the shim")]
    Ready(#[source] io::Error),
}

/// Every sandbox has a vsock of its own, so all guests use the first context id that is free to use.
const GUEST_CID: u64 = 3;

/// Host ports that the guest may dial: the agent's own, and that of streams.
const PORTS: [u32; 2] = [1024, 1025];

/// How long what a guest has sent may outlive its VMM: a reader that is alive takes 256 KiB in a fraction of it, and the
/// sandbox's end has to be known within a second.
const DRAIN: Duration = Duration::from_millis(800);

/// Serves all devices until the sandbox ends.
///
/// # Errors
/// [`ServeError`] when it cannot begin to.
pub fn serve(sockets: Sockets, tree: Tree) -> Result<End, ServeError> {
    let (ended, ends) = mpsc::channel();
    let control = sockets.control;
    let vsock = start_vsock(control.clone(), sockets.vsock, &ended)?;
    let reporter = control.clone();
    let pressure = Pressure::new(tree.descriptors, move |open, limit| {
        // A shim that is behind, or gone, is told the next time.
        let message = Message::InodePressure { open, limit };
        let told = reporter.send(&message, &[]);
        told.inspect_err(|cause| tracing::debug!(%cause, "pressure")).is_ok()
    });
    let shares = [(Share::Roots, sockets.roots), (Share::Volumes, sockets.volumes)];
    for ((share, listener), proc_self_fd) in shares.into_iter().zip(tree.proc_self_fd) {
        let backend = share.backend(&tree.path, proc_self_fd, pressure.clone())?;
        let daemon = daemon(share.tag(), Arc::clone(&backend))?;
        backend
            .register(&daemon)
            .map_err(|source| ShareError::Timer { tag: share.tag(), source })?;
        watch(share.tag(), daemon, listener, ended.clone())?;
    }
    control.send(&Message::Ready {}, &[]).map_err(ServeError::Ready)?;
    thread::Builder::new()
        .name("shim".into())
        .spawn(move || {
            control.wait_closed();
            // Fails only when the process is ending already.
            ended.send(End::Shim).unwrap_or_default();
        })
        .map_err(ServeError::Thread)?;
    let end = ends.recv().unwrap_or(End::Shim);
    if end != End::Shim {
        vsock.drain(DRAIN);
    }
    Ok(end)
}

fn start_vsock(
    control: Control,
    listener: OwnedFd,
    ended: &mpsc::Sender<End>,
) -> Result<Arc<VsockBackend<Control>>, ServeError> {
    let identity = Identity { guest_cid: GUEST_CID, ports: PORTS.into() };
    let backend = VsockBackend::new(identity, control).map_err(ServeError::Vsock)?;
    let daemon = daemon("vsock", Arc::clone(&backend))?;
    backend.register(&daemon).map_err(ServeError::Vsock)?;
    watch("vsock", daemon, listener, ended.clone())?;
    Ok(backend)
}

fn daemon<B>(name: &'static str, backend: B) -> Result<VhostUserDaemon<B>, ServeError>
where
    B: VhostUserBackend + Clone + 'static,
    B::Bitmap: BitmapReplace + NewBitmap + Clone + Send + Sync,
    B::Vring: Clone + Send + Sync,
{
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    VhostUserDaemon::new(name.to_owned(), backend, memory)
        .map_err(|cause| ServeError::Connect { name, cause: cause.to_string() })
}

/// Takes the VMM's connection, and waits for its end in a thread of its own.
fn watch<B>(
    name: &'static str,
    mut daemon: VhostUserDaemon<B>,
    listener: OwnedFd,
    ended: mpsc::Sender<End>,
) -> Result<(), ServeError>
where
    B: VhostUserBackend + Clone + 'static,
    B::Bitmap: BitmapReplace + NewBitmap + Clone + Send + Sync,
    B::Vring: Clone + Send + Sync,
{
    use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
    use vhost_user_backend::Error::HandleRequest;

    let mut listener = Listener::from(UnixListener::from(listener));
    daemon
        .start(&mut listener)
        .map_err(|cause| ServeError::Connect { name, cause: cause.to_string() })?;
    thread::Builder::new()
        .name(format!("{name}-end"))
        .spawn(move || {
            let end = match daemon.wait() {
                Ok(()) | Err(HandleRequest(Disconnected | PartialMessage | SocketBroken(_))) => {
                    End::Vmm
                }
                Err(cause) => End::Device(format!("{name}: {cause}")),
            };
            // Fails only when the process is ending already.
            ended.send(end).unwrap_or_default();
        })
        .map(drop)
        .map_err(ServeError::Thread)
}
