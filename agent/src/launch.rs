//! The agent's side of a helper: gives the order, hears what came of it, starts the process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::{scm, watch};
use rustix::fs::OFlags;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    nursery::Nursery,
    order::{self, Failure, Order, Report, START, Step},
};

/// A container process in place, waiting to be started; or on its way, if there is nothing that it has to wait for.
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

/// What holds a process back, if it waits; dropped unopened, the process gives up.
#[derive(Debug)]
pub struct Gate {
    control: AsyncFd<OwnedFd>,
    waits: bool,
}

/// Has a helper make a process with these standard streams; the files go with the order.
pub async fn launch(
    nursery: &Nursery,
    order: &Order,
    files: &[BorrowedFd<'_>],
    streams: &[OwnedFd; 3],
) -> Result<Launched, Failure> {
    let (near, far) = scm::packet_pair().step(|| "make a socket pair")?;
    // Before there is anybody who reads it: the helper finds it there.
    order::send(&near, order, files).step(|| "send an order")?;
    nursery.make(streams, &far)?;
    drop(far);
    let control = non_blocking(near).step(|| "prepare the helper's socket")?;
    // Two processes report: that it exists, and, if it waits, that it is ready. Either may be first.
    let (mut forked, mut ready) = (None, None);
    loop {
        match receive(&control).await? {
            Some((Report::Forked { pid, waits }, fds)) => {
                forked = Some((pid, waits, fds.into_iter()));
                if !waits {
                    ready = Some(None);
                }
            }
            Some((Report::Ready, fds)) => ready = Some(fds.into_iter().next()),
            Some((Report::Failed(failure), _)) => return Err(failure),
            None if forked.is_none() && ready.is_none() => return Err(silent()),
            None => return Err(gone()),
        }
        match (forked, ready) {
            (Some((pid, waits, mut files)), Some(terminal)) => {
                let pidfd = files.next().ok_or_else(gone)?;
                let (filters, gate) = (files.next(), Gate { control, waits });
                return Ok(Launched { pid, pidfd, terminal, filters, gate });
            }
            partial => (forked, ready) = partial,
        }
    }
}

impl Gate {
    /// Lets the process execute its program; returns when it runs, or why it does not.
    pub async fn open(self) -> Result<(), Failure> {
        if self.waits {
            scm::send(&self.control, START, &[]).step(|| "start the process")?;
        }
        match receive(&self.control).await? {
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

/// The helper was killed, or the nursery before it made one.
fn silent() -> Failure {
    Failure {
        kind: order::FailureKind::Internal,
        message: "the helper ended without a word".into(),
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
