//! The shim's side of a monitor's control connection.

use std::os::fd::{AsFd, OwnedFd};

use kata_engine_api::control::{End, Stream, ToMonitor, ToShim};
use kata_sandbox::packet::{PacketError, PacketSocket};

/// A monitor, alive or not: whether it is gone shows in [`Monitor::next`].
#[derive(Debug)]
pub struct Monitor {
    control: PacketSocket,
    /// Its pid on the host.
    pub pid: u32,
}

impl Monitor {
    /// Takes over the control connection that came with the handover.
    pub fn new(control: OwnedFd, pid: u32) -> Result<Self, PacketError> {
        Ok(Self { control: PacketSocket::new(control)?, pid })
    }

    /// Hands over the guest streams. A monitor that is gone is noticed elsewhere.
    pub async fn hand_over(&self, streams: Vec<(Stream, OwnedFd)>) {
        let (kinds, fds): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.control.send(&ToMonitor::Streams(kinds), &borrowed).await {
            tracing::debug!(%error, pid = self.pid, "hand streams to the monitor");
        }
    }

    /// Tells how the process ended.
    pub async fn end(&self, end: End) {
        if let Err(error) = self.control.send(&ToMonitor::End(end), &[]).await {
            tracing::debug!(%error, pid = self.pid, "tell the monitor the end");
        }
    }

    /// The next thing that the monitor says; `None` when it is gone.
    pub async fn next(&self) -> Option<ToShim> {
        match self.control.receive().await {
            Ok(message) => message.map(|(message, _)| message),
            Err(error) => {
                tracing::warn!(%error, pid = self.pid, "message of the monitor");
                None
            }
        }
    }

    /// Closes the connection: after an end, the monitor's leave to exit.
    pub fn dismiss(&self) {
        self.control.close();
    }
}
