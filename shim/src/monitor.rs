//! The shim's side of a monitor's control connection.

use std::os::fd::{AsFd, OwnedFd};

use kata_engine_api::control::{End, Stream, ToMonitor, ToShim};
use kata_sandbox::packet::{PacketError, PacketSocket};
use rustix::{
    fs::{AtFlags, CWD, FileType, StatxFlags, statx},
    process::{Signal, pidfd_send_signal},
};
use tokio::sync::watch;

/// Major and minor number of `/dev/null`, for ever.
const NULL: (u32, u32) = (1, 3);

/// A monitor, alive or not: whether it is gone shows in [`Monitor::next`].
#[derive(Debug)]
pub struct Monitor {
    control: PacketSocket,
    /// Its pid on the host.
    pub pid: u32,
    /// The process, when it is a child of the shim.
    process: Option<OwnedFd>,
    /// Closes when that has been waited for.
    reaped: Option<watch::Receiver<()>>,
    /// It stands on the caller's own terminal.
    pub callers_terminal: bool,
}

impl Monitor {
    /// Takes over the control connection that came with the handover.
    pub fn new(control: OwnedFd, pid: u32) -> Result<Self, PacketError> {
        Ok(Self {
            control: PacketSocket::new(control)?,
            pid,
            process: None,
            reaped: None,
            callers_terminal: false,
        })
    }

    /// One that stands on the caller's own terminal, or not.
    pub fn on_callers_terminal(self, callers_terminal: bool) -> Self {
        Self { callers_terminal, ..self }
    }

    /// One that the shim itself has started, and waits for; `reaped` closes when it has.
    pub fn of_ours(self, process: OwnedFd, reaped: watch::Receiver<()>) -> Self {
        Self { process: Some(process), reaped: Some(reaped), ..self }
    }

    /// Waits until there is no process of its number any more, if it is one of ours.
    pub async fn reaped(&self) {
        if let Some(mut reaped) = self.reaped.clone() {
            // Nothing is ever sent.
            reaped.changed().await.ok();
        }
    }

    /// Whether nobody but the shim waits for it.
    pub fn is_ours(&self) -> bool {
        self.process.is_some()
    }

    /// Whether a stream leads to `/dev/null` on the host: the guest has one of its own, and the process needs no connection.
    pub fn discards(&self, stream: Stream) -> bool {
        let number = match stream {
            Stream::Stdin => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
            Stream::Terminal => return false,
        };
        let path = format!("/proc/{}/fd/{number}", self.pid);
        // What is known is enough: a server that hangs must not be asked. A monitor that is gone has nothing to say to it.
        statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).is_ok_and(|file| {
            FileType::from_raw_mode(file.stx_mode.into()) == FileType::CharacterDevice
                && (file.stx_rdev_major, file.stx_rdev_minor) == NULL
        })
    }

    /// Kills one of ours.
    pub fn kill(&self) {
        let Some(process) = &self.process else { return };
        if let Err(error) = pidfd_send_signal(process, Signal::KILL) {
            tracing::debug!(%error, pid = self.pid, "kill a monitor");
        }
    }

    /// Closes stdin, once what the engine has written is passed on.
    pub async fn close_stdin(&self) {
        if let Err(error) = self.control.send(&ToMonitor::CloseStdin {}, &[]).await {
            tracing::debug!(%error, pid = self.pid, "close stdin");
        }
    }

    /// Hands over the guest streams. A monitor that is gone is noticed elsewhere.
    pub async fn hand_over(&self, streams: Vec<(Stream, OwnedFd)>) {
        let (kinds, fds): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.control.send(&ToMonitor::Streams(kinds), &borrowed).await {
            tracing::debug!(%error, pid = self.pid, "hand streams to the monitor");
        }
    }

    /// Hands over the listeners of localhost. A monitor that is gone is noticed elsewhere.
    pub async fn serve_localhost(&self, listeners: &[OwnedFd]) {
        let listeners: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.control.send(&ToMonitor::Localhost {}, &listeners).await {
            tracing::debug!(%error, pid = self.pid, "hand localhost to the monitor");
        }
    }

    /// Hands over the stream of questions for docker's resolver.
    pub async fn serve_resolver(&self, stream: &OwnedFd) {
        if let Err(error) = self.control.send(&ToMonitor::Resolver {}, &[stream.as_fd()]).await {
            tracing::debug!(%error, pid = self.pid, "hand the resolver to the monitor");
        }
    }

    /// Answers a connection to localhost.
    pub async fn dialled(&self, number: u64, stream: Option<OwnedFd>) {
        let stream: Vec<_> = stream.iter().map(AsFd::as_fd).collect();
        if let Err(error) = self.control.send(&ToMonitor::Dialled(number), &stream).await {
            tracing::debug!(%error, pid = self.pid, "hand a connection to the monitor");
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
