//! Connections from the host to what listens on the guest's localhost.
//!
//! ```text
//! dial in the guest ── refused ─► the request's error
//!        └─ dial the host ─► relay: each end's end of file becomes a half-close of the other, a reset a reset
//! ```
//!
//! Bytes are spliced through a pipe for each direction, so they never enter the agent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kata_protocol::{agent::DialLocalhostRequest, hello::StreamKind};
use kata_sys::watch;
use rustix::{
    net::{
        SendFlags, Shutdown, send, shutdown,
        sockopt::{set_socket_linger, set_tcp_nodelay},
    },
    pipe::{PipeFlags, SpliceFlags, pipe_with, splice},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{
    order::{Failure, Step},
    streams,
};

/// Connections at once; the host keeps to no more.
const MAX_CONNECTIONS: usize = 256;

/// Streams that the host has not greeted yet: it closes what is too many.
const MAX_DIALS: usize = 16;

/// A listener that does not accept holds up those who dial it when its backlog is full.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most bytes of one splice: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// So many chunks, and other tasks have their turn.
const TURN: usize = 8;

/// The way to the guest's localhost.
pub struct Localhost {
    connections: Arc<Semaphore>,
    dials: Semaphore,
}

impl Default for Localhost {
    fn default() -> Self {
        Self {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            dials: Semaphore::new(MAX_DIALS),
        }
    }
}

impl Localhost {
    /// Connects an address of the guest with the host.
    pub async fn dial(&self, request: &DialLocalhostRequest) -> Result<(), Failure> {
        let address = destination(request)?;
        let token = streams::token(&request.token)?
            .ok_or_else(|| Failure::invalid("a connection needs a token"))?;
        let permit = self.connections.clone().try_acquire_owned();
        let permit = permit.step(|| "take one more connection")?;
        let guest = timeout(PATIENCE, connect(address)).await;
        let guest = guest.step(|| format!("dial {address}"))?.step(|| format!("dial {address}"))?;
        let guest = async_fd(guest).step(|| "watch a connection")?;
        let dialling = self.dials.acquire().await.step(|| "dial the host")?;
        let host = streams::dial(StreamKind::Localhost, token).await;
        drop(dialling);
        let host = host.step(|| "dial the host")?;
        tokio::spawn(relay(host, guest, permit));
        Ok(())
    }
}

fn destination(request: &DialLocalhostRequest) -> Result<SocketAddr, Failure> {
    let address: Option<IpAddr> = request.address.parse().ok();
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    match (address.filter(IpAddr::is_loopback), port) {
        (Some(address), Some(port)) => Ok(SocketAddr::new(address, port)),
        _ => Err(Failure::invalid("not an address of localhost")),
    }
}

/// Who dials `localhost` and gets through to one address does not try the other: so both are tried here.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let refused = match TcpStream::connect(address).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
        connected => return connected,
    };
    let other = match address.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        _ => return Err(refused),
    };
    TcpStream::connect(SocketAddr::new(other, address.port())).await.map_err(|_| refused)
}

fn async_fd(stream: TcpStream) -> io::Result<AsyncFd<OwnedFd>> {
    let stream = OwnedFd::from(stream.into_std()?);
    set_tcp_nodelay(&stream, true)?;
    watch::watch(stream, Interest::READABLE | Interest::WRITABLE)
}

/// Moves bytes until both directions are over, or one end is reset; then so is the other.
async fn relay(host: AsyncFd<OwnedFd>, guest: AsyncFd<OwnedFd>, _permit: OwnedSemaphorePermit) {
    let (to_guest, to_host) = (AtomicBool::new(false), AtomicBool::new(false));
    let done = tokio::try_join!(
        carry(&host, &guest, (&to_guest, &to_host)),
        carry(&guest, &host, (&to_host, &to_guest)),
    );
    if done.is_err() {
        // Closing resets then. Where that can't be set it is an ordinary end, for nothing else can be done.
        set_socket_linger(&guest, Some(Duration::ZERO)).ok();
    }
}

/// Moves the bytes of one direction, and their end; `over` says of it and of the other one whether that is done.
async fn carry(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    (over, other): (&AtomicBool, &AtomicBool),
) -> io::Result<()> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    for turn in 1_usize.. {
        let mut waiting = moved(from, Interest::READABLE, |from| move_some(from, &write)).await?;
        if waiting == 0 {
            break;
        }
        while waiting > 0 {
            waiting -= moved(to, Interest::WRITABLE, |to| move_some(&read, to)).await?;
        }
        if turn % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    // Sending nothing tells whether anybody would read it: who closes both halves at once breaks off.
    if !other.load(Ordering::Relaxed) && send(from, &[], SendFlags::NOSIGNAL).is_err() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    over.store(true, Ordering::Relaxed);
    Ok(shutdown(to, Shutdown::Write)?)
}

/// Waits for a descriptor and moves what there is; 0 is the end.
async fn moved(
    fd: &AsyncFd<OwnedFd>,
    interest: Interest,
    mut step: impl FnMut(&OwnedFd) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match fd.async_io(interest, &mut step).await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// One end is a pipe, which is empty before it is filled: if there is nothing to do, it is the other end's doing.
fn move_some(from: &OwnedFd, to: &OwnedFd) -> io::Result<usize> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    Ok(splice(from, None, to, None, CHUNK, flags)?)
}

#[cfg(test)]
mod tests {
    use kata_protocol::agent::DialLocalhostRequest;

    use super::destination;

    #[test]
    fn only_localhost_is_dialled() {
        let parse = |address: &str, port| {
            let address = address.to_owned();
            destination(&DialLocalhostRequest { address, port, ..Default::default() })
        };
        for (address, port) in [("127.0.0.1", 80), ("127.255.0.9", 65535), ("::1", 1)] {
            assert!(parse(address, port).is_ok(), "{address}");
        }
        for (address, port) in [
            ("10.0.0.1", 80),
            ("::ffff:127.0.0.1", 80),
            ("", 80),
            ("localhost", 80),
            ("127.0.0.1", 0),
            ("127.0.0.1", 65536),
        ] {
            assert!(parse(address, port).is_err(), "{address} {port}");
        }
    }
}
