//! JSON messages with descriptors over a SEQPACKET socket, without blocking.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::{scm, watch::watch};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

/// Why a message did not go or come.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum PacketError {
    #[error("watch packet socket")]
    Watch(#[source] io::Error),
    #[error("send packet")]
    Send(#[source] io::Error),
    #[error("receive packet")]
    Receive(#[source] io::Error),
    #[error("read message {text:?}")]
    Message {
        text: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("write message")]
    Encode(#[source] serde_json::Error),
}

impl PacketError {
    /// Whether only one packet was lost, with its descriptors, and the connection goes on.
    pub fn is_of_one_packet(&self) -> bool {
        match self {
            Self::Message { .. } => true,
            // It was cut short: this process has no room for its descriptors just now.
            Self::Receive(error) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

/// One end of a SEQPACKET connection.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
}

impl PacketSocket {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// [`PacketError::Watch`].
    pub fn new(socket: OwnedFd) -> Result<Self, PacketError> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| PacketError::Watch(e.into()))?;
        let socket =
            watch(socket, Interest::READABLE | Interest::WRITABLE).map_err(PacketError::Watch)?;
        Ok(Self { socket })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`PacketError::Send`] when the peer is gone.
    pub async fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), PacketError> {
        let packet = serde_json::to_vec(message).map_err(PacketError::Encode)?;
        self.socket
            .async_io(Interest::WRITABLE, |socket| scm::send(socket.as_fd(), &packet, fds))
            .await
            .map_err(PacketError::Send)
    }

    /// Receives one message and its descriptors; `None` when the peer has closed.
    ///
    /// # Errors
    /// [`PacketError`]; [`PacketError::Message`] for what is no `T`.
    pub async fn receive<T: DeserializeOwned>(
        &self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, PacketError> {
        let received =
            self.socket.async_io(Interest::READABLE, |socket| scm::receive(socket.as_fd())).await;
        let packet = match received {
            Ok(packet) if packet.is_end() => return Ok(None),
            Ok(packet) => packet,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(PacketError::Receive(e)),
        };
        let message = serde_json::from_slice(&packet.bytes).map_err(|source| {
            let text = String::from_utf8_lossy(&packet.bytes).chars().take(200).collect();
            PacketError::Message { text, source }
        })?;
        Ok(Some((message, packet.fds)))
    }

    /// Closes the connection for both sides, whoever else holds this end.
    pub fn close(&self) {
        if let Err(error) =
            rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both)
        {
            tracing::debug!(%error, "close packet socket");
        }
    }
}
