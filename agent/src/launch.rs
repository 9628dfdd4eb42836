//! The agent's side of a helper: gives the order, hears what came of it, starts the process.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::{scm, spawn::Spawn, watch};
use rustix::fs::OFlags;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    helper,
    order::{self, Failure, Order, Report, START, Step},
};

/// A container process in place, waiting to be started.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Of an init: the container's compiled filters.
    pub filters: Option<OwnedFd>,
    pub gate: Gate,
}

/// What holds a process back; dropped unopened, the process gives up.
#[derive(Debug)]
pub struct Gate(AsyncFd<OwnedFd>);

/// Has a helper make a process with these standard streams; the files go with the order.
pub async fn launch(
    order: &Order,
    files: &[BorrowedFd<'_>],
    streams: &[OwnedFd; 3],
) -> Result<Launched, Failure> {
    let (near, far) = scm::packet_pair().step(|| "make a socket pair")?;
    let [stdin, stdout, stderr] = streams;
    let mut spawn = Spawn::new(CString::from(c"/proc/self/exe"));
    spawn.arguments =
        [c"kata-agent".into(), CString::new(helper::ARGUMENT).step(|| "name")?].into();
    spawn.fds = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), far.as_fd()];
    // Its end is the reaper's business, and what it says of itself comes over the socket.
    spawn.start().step(|| "start a helper")?;
    drop(far);
    order::send(&near, order, files).step(|| "send an order")?;
    let control = non_blocking(near).step(|| "prepare the helper's socket")?;
    // Two processes report: that it exists, and that it is ready. Either may be first.
    let (mut forked, mut ready) = (None, None);
    loop {
        match receive(&control).await? {
            Some((Report::Forked { pid }, fds)) => forked = Some((pid, fds.into_iter())),
            Some((Report::Ready, fds)) => ready = Some(fds.into_iter().next()),
            Some((Report::Failed(failure), _)) => return Err(failure),
            None => return Err(gone()),
        }
        match (forked, ready) {
            (Some((pid, mut files)), Some(terminal)) => {
                let pidfd = files.next().ok_or_else(gone)?;
                let (filters, gate) = (files.next(), Gate(control));
                return Ok(Launched { pid, pidfd, terminal, filters, gate });
            }
            partial => (forked, ready) = partial,
        }
    }
}

impl Gate {
    /// Lets the process execute its program; returns when it runs, or why it does not.
    pub async fn open(self) -> Result<(), Failure> {
        scm::send(&self.0, START, &[]).step(|| "start the process")?;
        match receive(&self.0).await? {
            // The socket is closed by execve, or by an end that the reaper tells.
            None => Ok(()),
            Some((Report::Failed(failure), _)) => Err(failure),
            Some((report, _)) => Err(Failure::invalid(format!("helper said {report:?} too late"))),
        }
    }
}

async fn receive(control: &AsyncFd<OwnedFd>) -> Result<Option<(Report, Vec<OwnedFd>)>, Failure> {
    loop {
        let mut guard = control.readable().await.step(|| "wait for the helper")?;
        match guard.try_io(|socket| order::receive(socket.as_fd())) {
            // A process that is killed with an unread order resets the connection: that too is an end.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(received) => return received.step(|| "hear the helper"),
            Err(_would_block) => {}
        }
    }
}

fn gone() -> Failure {
    Failure {
        kind: order::FailureKind::Internal,
        message: "the container process was killed before it was ready".into(),
    }
}

fn non_blocking(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
    watch::watch(socket, Interest::READABLE | Interest::WRITABLE)
}
