//! The tasks that move bytes, one for each direction of each stream.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{Shutdown, shutdown},
    pipe::{SpliceFlags, splice},
};
use tokio::io::{Interest, Ready, unix::AsyncFd};

use super::{Counter, terminal::Terminal};
use crate::socket::send_all;

/// Most bytes of one splice.
const CHUNK: usize = 1 << 20;

/// So many chunks, and other tasks have their turn.
const TURN: usize = 8;

/// Most bytes of a terminal that are moved at once.
const TERMINAL_CHUNK: usize = 16 * 1024;

/// From the host into the process; ends when the host closes, or when nobody can read the pipe any more.
pub async fn input(connection: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd>) {
    let abandoned = async {
        // A pipe's end for writing is in error once the last reader is gone.
        drop(pipe.ready(Interest::ERROR).await);
    };
    tokio::select! {
        // Either way what follows is the same: both ends are closed, the pipe behind its last byte.
        _ = forward(&connection, &pipe, |_| ()) => {}
        () = abandoned => {}
    }
}

/// From the process to the host.
pub async fn output(connection: AsyncFd<OwnedFd>, pipe: Arc<AsyncFd<OwnedFd>>, counter: Counter) {
    let forwarded = forward(&pipe, &connection, |length| counter.add(length)).await;
    // Closes the pipe: a process that goes on writing is told so, as when a reader on a host goes away.
    drop(pipe);
    if forwarded.is_ok() {
        finish(&connection).await;
    }
}

/// Half-closes, and keeps the connection until the host has read to its end and closes.
async fn finish(connection: &AsyncFd<OwnedFd>) {
    if shutdown(connection, Shutdown::Write).is_err() {
        return;
    }
    let mut byte = [0];
    while let Ok(mut guard) = connection.readable().await {
        let read = guard.try_io(|socket| Ok(rustix::io::read(socket.as_fd(), &mut byte)?));
        if let Ok(Ok(0) | Err(_)) = read {
            return;
        }
    }
}

/// Splices until the end of `from`; one of the two is a pipe.
async fn forward(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    mut moved: impl FnMut(usize),
) -> io::Result<()> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    for chunk in 1_usize.. {
        let mut readable = from.readable().await?;
        let mut writable = to.writable().await?;
        match splice(from, None, to, None, CHUNK, flags) {
            Ok(0) => break,
            Ok(length) => moved(length),
            Err(Errno::AGAIN) => {
                // One of the two was not ready after all; which one, the error does not tell.
                if !is_ready(from, PollFlags::IN)? {
                    readable.clear_ready_matching(Ready::READABLE);
                }
                if !is_ready(to, PollFlags::OUT)? {
                    writable.clear_ready_matching(Ready::WRITABLE);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if chunk % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn is_ready(fd: impl AsFd, event: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(&fd, event)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut polled, Some(&now))? != 0)
}

/// From the host's terminal into the process's.
pub async fn terminal_input(connection: Arc<AsyncFd<OwnedFd>>, terminal: Arc<Terminal>) {
    let mut buffer = vec![0; TERMINAL_CHUNK];
    while let Ok(mut guard) = connection.readable().await {
        let read = guard.try_io(|socket| Ok(rustix::io::read(socket.as_fd(), &mut buffer)?));
        match read {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(length)) => {
                if terminal.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// From the process's terminal to the host's.
pub async fn terminal_output(connection: Arc<AsyncFd<OwnedFd>>, terminal: Arc<Terminal>) {
    while let Some(bytes) = terminal.read(TERMINAL_CHUNK).await {
        if send_all(&connection, &bytes).await.is_err() {
            return;
        }
    }
    finish(&connection).await;
}
