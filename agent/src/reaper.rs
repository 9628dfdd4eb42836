//! Process 1 reaps everything: container processes, helpers, and whatever was orphaned.
//!
//! A container process may end before its maker has heard of its pid. So while a launch is under way the ends of
//! unknown processes are kept; they are asked for when the pid is known, and forgotten when no launch is left.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(u32),
    Signal(u32),
}

/// What the pidfd of a process says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Alive,
    /// And [collected](Reaper::collect_one) since.
    Ended,
}

type OnEnd = Box<dyn FnOnce(Exit) + Send>;

#[derive(Default)]
struct State {
    awaited: HashMap<i32, OnEnd>,
    unclaimed: HashMap<i32, Exit>,
    launches: usize,
}

/// Ends that are told before others have their turn.
const AT_ONCE: usize = 64;

/// The one place where processes are waited for.
#[derive(Default)]
pub struct Reaper(Mutex<State>);

impl Reaper {
    /// Reaps for ever.
    pub async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            while self.collect() {
                // A container may make children of ours faster than they are reaped.
                tokio::task::yield_now().await;
            }
            children.recv().await;
        }
    }

    /// Reaps a child that has ended, if nobody has.
    pub fn collect_one(&self, pid: i32) {
        let known = Pid::from_raw(pid);
        if let Ok(Some((_, status))) = waitpid(known, WaitOptions::NOHANG)
            && let Some(exit) = exit_of(status)
        {
            self.reaped(pid, exit);
        }
    }

    /// Reaps what has ended, as one signal may stand for many children; whether there may be more.
    fn collect(&self) -> bool {
        for _ in 0..AT_ONCE {
            let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) else { return false };
            // Stopped or continued: not asked for, and no end.
            if let Some(exit) = exit_of(status) {
                self.reaped(pid.as_raw_nonzero().get(), exit);
            }
        }
        true
    }

    fn reaped(&self, pid: i32, exit: Exit) {
        let mut state = self.state();
        match state.awaited.remove(&pid) {
            Some(on_end) => {
                drop(state);
                on_end(exit);
            }
            None if state.launches > 0 => {
                state.unclaimed.insert(pid, exit);
            }
            None => {}
        }
    }

    /// Keeps the ends of unknown processes until the guard is dropped.
    pub fn launching(self: &Arc<Self>) -> Launching {
        self.state().launches += 1;
        Launching(self.clone())
    }

    /// Calls back in the moment that `pid` is reaped; at once if that has been.
    ///
    /// A process that lives cannot be the one of its number whose end was kept: that was an earlier one.
    pub fn on_end(&self, pid: i32, life: Life, on_end: impl FnOnce(Exit) + Send + 'static) {
        let mut state = self.state();
        match state.unclaimed.remove(&pid).filter(|_| life == Life::Ended) {
            Some(exit) => {
                drop(state);
                on_end(exit);
            }
            None => {
                state.awaited.insert(pid, Box::new(on_end));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(|code| Exit::Code(code.unsigned_abs()));
    code.or_else(|| status.terminating_signal().map(|signal| Exit::Signal(signal.unsigned_abs())))
}

/// A launch under way.
pub struct Launching(Arc<Reaper>);

impl Drop for Launching {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.launches -= 1;
        if state.launches == 0 {
            state.unclaimed.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{Exit, Life, Reaper};

    fn slot() -> (Arc<Mutex<Option<Exit>>>, impl FnOnce(Exit) + Send + 'static) {
        let slot = Arc::new(Mutex::new(None));
        let filled = slot.clone();
        (slot, move |exit| *filled.lock().unwrap() = Some(exit))
    }

    #[test]
    fn an_end_that_comes_before_its_pid_is_known_is_kept() {
        let reaper = Arc::new(Reaper::default());
        let launching = reaper.launching();
        reaper.reaped(7, Exit::Code(42));
        let (end, on_end) = slot();
        reaper.on_end(7, Life::Ended, on_end);
        assert_eq!(*end.lock().unwrap(), Some(Exit::Code(42)));
        drop(launching);
    }

    #[test]
    fn an_orphan_is_forgotten_and_can_not_be_taken_for_a_later_process() {
        let reaper = Arc::new(Reaper::default());
        drop(reaper.launching());
        reaper.reaped(7, Exit::Code(1));
        let (end, on_end) = slot();
        reaper.on_end(7, Life::Alive, on_end);
        assert_eq!(*end.lock().unwrap(), None);
        reaper.reaped(7, Exit::Signal(9));
        assert_eq!(*end.lock().unwrap(), Some(Exit::Signal(9)));
    }

    #[test]
    fn a_reused_number_does_not_inherit_an_end() {
        let reaper = Arc::new(Reaper::default());
        let launching = reaper.launching();
        reaper.reaped(7, Exit::Code(1));
        let (end, on_end) = slot();
        reaper.on_end(7, Life::Alive, on_end);
        assert_eq!(*end.lock().unwrap(), None);
        reaper.reaped(7, Exit::Code(2));
        assert_eq!(*end.lock().unwrap(), Some(Exit::Code(2)));
        drop(launching);
    }
}
