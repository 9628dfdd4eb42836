//! Threads that are there before they have work.
//!
//! The monitor is put into its container's control group once it is ready, and a limit on pids there (of one, say) leaves
//! room for no thread of its own. Threads that a process brings along are not asked.

use std::{
    ffi::CStr,
    io,
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

/// What a monitor does needs little, and every page of it is there once a container.
const STACK: usize = 64 * 1024;

type Work = Box<dyn FnOnce() + Send>;

/// Those that wait.
#[derive(Debug)]
pub struct Crew {
    waiting: Mutex<Vec<mpsc::Sender<Work>>>,
}

impl Crew {
    /// As many as there will ever be.
    pub fn new(count: usize) -> io::Result<Self> {
        let waiting = (0..count).map(|_| wait_for_work()).collect::<io::Result<_>>()?;
        Ok(Self { waiting: Mutex::new(waiting) })
    }

    /// Has one of them do this, for as long as it takes.
    pub fn give(
        &self,
        name: &'static CStr,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = move || {
            // For whoever looks at the process's threads.
            rustix::thread::set_name(name).ok();
            work();
        };
        next.and_then(|next| next.send(Box::new(work)).ok())
            .ok_or_else(|| io::Error::other("all threads have work already"))
    }
}

fn wait_for_work() -> io::Result<mpsc::Sender<Work>> {
    let (next, work) = mpsc::channel::<Work>();
    thread::Builder::new().stack_size(STACK).spawn(move || {
        if let Ok(work) = work.recv() {
            work();
        }
    })?;
    Ok(next)
}
