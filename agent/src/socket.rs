//! Connections to the host, as asynchronous byte streams.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use kata_sys::{vsock, watch};
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt::socket_error};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    sync::oneshot,
};

/// Dials a port of the host.
pub async fn dial(port: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let socket = watch::watch(
        vsock::connect(vsock::HOST_CID, port)?,
        Interest::READABLE | Interest::WRITABLE,
    )?;
    // Without the guard's clearing: a socket that is connected stays writable.
    drop(socket.writable().await?);
    socket_error(&socket)?.map_err(io::Error::from)?;
    Ok(socket)
}

/// Sends all of `bytes`.
pub async fn send_all(socket: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = socket.writable().await?;
        let sent = guard.try_io(|socket| Ok(send(socket, bytes, SendFlags::NOSIGNAL)?));
        if let Ok(sent) = sent {
            bytes = bytes.get(sent?..).unwrap_or_default();
        }
    }
    Ok(())
}

/// Receives until `bytes` is full.
pub async fn receive_all(socket: &AsyncFd<OwnedFd>, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = socket.readable().await?;
        let received = guard.try_io(|socket| Ok(rustix::io::read(socket.as_fd(), &mut *bytes)?));
        match received {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => bytes = bytes.get_mut(length?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// The agent's own connection, which tells when it is over.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
    ended: Option<oneshot::Sender<()>>,
}

impl Connection {
    /// Wraps a dialled socket; the receiver resolves when the peer has closed it or it has failed.
    pub fn new(socket: AsyncFd<OwnedFd>) -> (Self, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel();
        (Self { socket, ended: Some(ended) }, end)
    }

    fn end(&mut self) {
        if let Some(ended) = self.ended.take() {
            // Nobody listens any more: then the agent is ending already.
            ended.send(()).ok();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let read = guard.try_io(|socket| Ok(rustix::io::read(socket.as_fd(), unfilled)?));
            match read {
                Ok(Ok(0)) => {
                    self.end();
                    return Poll::Ready(Ok(()));
                }
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => {
                    self.end();
                    return Poll::Ready(Err(error));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(context))?;
            if let Ok(sent) = guard.try_io(|socket| Ok(send(socket, bytes, SendFlags::NOSIGNAL)?)) {
                return Poll::Ready(sent);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(&self.socket, Shutdown::Write)?))
    }
}
