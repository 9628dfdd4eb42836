//! The task that owns a running QEMU and says how it ended.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kata_sys::spawn::{Child, Exit};
use tokio::{
    io::{AsyncRead, AsyncReadExt, unix::AsyncFd},
    net::{UnixStream, unix::pipe},
    sync::{broadcast, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Console, Fatal, VmEnd,
    qmp::{Event, Qmp, ShutdownReason},
};

/// From the word of death to the deed: a panicking guest writes its stack trace and resets, QEMU tears down. An end must
/// be known within a second.
const GRACE: Duration = Duration::from_millis(500);

/// From the end of the process to the ends of its sockets, which are instant unless somebody else holds them.
const DRAIN: Duration = Duration::from_millis(200);

/// Bytes of stderr that an end tells.
const STDERR: usize = 4096;

/// What the supervisor takes charge of.
pub(super) struct Supervised {
    pub(super) child: Arc<Child>,
    pub(super) pidfd: AsyncFd<OwnedFd>,
    pub(super) qmp: Qmp,
    pub(super) events: broadcast::Receiver<Event>,
    pub(super) console: Arc<Console>,
    pub(super) console_socket: UnixStream,
    pub(super) stderr: pipe::Receiver,
    pub(super) stopping: watch::Receiver<bool>,
    /// Open as long as we live.
    pub(super) lifeline: OwnedFd,
}

/// What QMP said about the end.
#[derive(Debug, Default)]
struct Said {
    shutdown: Option<ShutdownReason>,
    panicked: bool,
}

impl Said {
    /// Notes an event; true when it announces the end.
    fn note(&mut self, event: &Event) -> bool {
        match event {
            // The first reason counts: QEMU may add that it was told to quit.
            Event::Shutdown(reason) => {
                self.shutdown.get_or_insert(*reason);
                true
            }
            Event::GuestPanicked => {
                self.panicked = true;
                true
            }
            _ => false,
        }
    }
}

/// Waits for the end of QEMU, reaps it, and publishes why it ended.
pub(super) async fn supervise(mut vm: Supervised, published: watch::Sender<Option<VmEnd>>) {
    let console = vm.console.clone();
    let console_reader = read(vm.console_socket, move |bytes| console.feed(bytes));
    let stderr = Arc::new(Mutex::new(Vec::new()));
    let stderr_reader = read(vm.stderr, {
        let stderr = stderr.clone();
        move |bytes| keep_tail(&mut stderr.lock().unwrap_or_else(PoisonError::into_inner), bytes)
    });
    let mut said = Said::default();
    let exit = follow(&vm.child, &vm.pidfd, &vm.console, &mut vm.events, &mut said).await;
    // The last words may still be on their way. Whoever inherited a socket by mistake can't delay the end.
    let drained = async {
        console_reader.await.ok();
        stderr_reader.await.ok();
        vm.qmp.closed().await;
    };
    timeout(DRAIN, drained).await.ok();
    while let Ok(event) = vm.events.try_recv() {
        said.note(&event);
    }
    let stderr = {
        let tail = stderr.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail).into_owned()
    };
    let end = judge(&exit, &said, &vm.console, *vm.stopping.borrow(), stderr);
    tracing::debug!(%end, "VM ended");
    published.send_if_modified(|known| known.is_none() && known.replace(end).is_none());
    drop(vm.lifeline);
}

/// Until the process has ended; kills it when the guest or QEMU announced the end and it does not come.
async fn follow(
    child: &Child,
    pidfd: &AsyncFd<OwnedFd>,
    console: &Console,
    events: &mut broadcast::Receiver<Event>,
    said: &mut Said,
) -> Exit {
    let mut doomed: Option<Instant> = None;
    let mut listening = true;
    loop {
        let doom = doomed.unwrap_or_else(Instant::now);
        tokio::select! {
            ready = pidfd.readable() => match (ready, child.try_wait()) {
                (_, Ok(Some(exit))) => return exit,
                // Reaped by somebody else: that it ended is all that is known.
                (_, Err(_)) | (Err(_), _) => return Exit::Code(-1),
                (Ok(mut guard), Ok(None)) => guard.clear_ready(),
            },
            event = events.recv(), if listening => match event {
                Ok(event) if said.note(&event) => {
                    doomed.get_or_insert(Instant::now() + GRACE);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => listening = false,
            },
            _ = console.dying(), if doomed.is_none() => doomed = Some(Instant::now() + GRACE),
            () = sleep_until(doom), if doomed.is_some() => {
                tracing::debug!("VMM outlives its guest and is killed");
                if child.kill().is_err() {
                    return Exit::Code(-1);
                }
                // Next is the pidfd; one that the host's kernel holds is killed again.
                doomed = Some(Instant::now() + GRACE);
            }
        }
    }
}

/// The guest's own word goes first, then QEMU's, then the kernel's.
fn judge(exit: &Exit, said: &Said, console: &Console, stopping: bool, stderr: String) -> VmEnd {
    match console.fatal() {
        Some(Fatal::InitDied) => return VmEnd::AgentDied(console.last_words()),
        Some(Fatal::Panic) => return VmEnd::GuestPanic(console.last_words()),
        Some(Fatal::Off) if !said.panicked => return VmEnd::GuestOff,
        _ if said.panicked => return VmEnd::GuestPanic(console.last_words()),
        _ => {}
    }
    if stopping {
        return VmEnd::Stopped;
    }
    match (said.shutdown, *exit) {
        (Some(ShutdownReason::GuestPanic), _) => VmEnd::GuestPanic(console.last_words()),
        (Some(ShutdownReason::GuestReset), _) => VmEnd::GuestReset,
        (Some(ShutdownReason::GuestShutdown), _) => VmEnd::GuestOff,
        (Some(ShutdownReason::HostSignal), _) => VmEnd::VmmKilled { signal: libc::SIGTERM },
        (_, Exit::Signal(signal)) => VmEnd::VmmKilled { signal },
        (_, Exit::Code(code)) => VmEnd::VmmExited { code, stderr },
    }
}

/// Reads to the end in a task of its own.
fn read<R>(mut reader: R, mut take: impl FnMut(&[u8]) + Send + 'static) -> JoinHandle<()>
where
    R: AsyncRead + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            take(&buffer[..length]);
        }
    })
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    let excess = tail.len().saturating_sub(STDERR);
    tail.drain(..excess);
}

#[cfg(test)]
mod tests {
    use kata_sys::spawn::Exit;

    use super::{STDERR, Said, judge, keep_tail};
    use crate::{
        Console, VmEnd,
        qmp::{Event, ShutdownReason},
    };

    fn judged(exit: Exit, events: &[Event], console: &str, stopping: bool) -> VmEnd {
        let mut said = Said::default();
        for event in events {
            said.note(event);
        }
        let tail = Console::default();
        tail.feed(console.as_bytes());
        judge(&exit, &said, &tail, stopping, "words".into())
    }

    #[test]
    fn a_panic_is_a_panic_however_the_vmm_ended() {
        let panic = "Kernel panic - not syncing: x\n";
        let reset = [Event::Shutdown(ShutdownReason::GuestReset)];
        for (exit, events) in [(Exit::Code(0), &reset[..]), (Exit::Signal(9), &[])] {
            let end = judged(exit, events, panic, false);
            assert_eq!(end, VmEnd::GuestPanic(panic.trim().into()));
        }
        let end = judged(Exit::Code(0), &[Event::GuestPanicked], "", false);
        assert_eq!(end, VmEnd::GuestPanic(String::new()));
    }

    #[test]
    fn each_reason_is_an_end_of_its_own() {
        let by = |reason| judged(Exit::Code(0), &[Event::Shutdown(reason)], "", false);
        assert_eq!(by(ShutdownReason::GuestReset), VmEnd::GuestReset);
        assert_eq!(by(ShutdownReason::GuestShutdown), VmEnd::GuestOff);
        assert_eq!(by(ShutdownReason::HostSignal), VmEnd::VmmKilled { signal: 15 });
        let exited = VmEnd::VmmExited { code: 0, stderr: "words".into() };
        assert_eq!(by(ShutdownReason::Other), exited);
    }

    #[test]
    fn our_own_kill_is_a_stop_and_anothers_is_not() {
        assert_eq!(judged(Exit::Signal(9), &[], "", true), VmEnd::Stopped);
        assert_eq!(judged(Exit::Signal(9), &[], "", false), VmEnd::VmmKilled { signal: 9 });
    }

    #[test]
    fn the_first_reason_counts() {
        let events = [
            Event::Shutdown(ShutdownReason::GuestShutdown),
            Event::Shutdown(ShutdownReason::HostSignal),
        ];
        assert_eq!(judged(Exit::Code(0), &events, "", false), VmEnd::GuestOff);
    }

    #[test]
    fn stderr_is_bounded() {
        let mut tail = Vec::new();
        keep_tail(&mut tail, &[b'a'; STDERR * 2]);
        keep_tail(&mut tail, b"end");
        assert_eq!((tail.len(), tail.ends_with(b"aend")), (STDERR, true));
    }
}
