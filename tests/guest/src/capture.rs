//! Output that a test waits for while it comes.

use std::{
    fs::File,
    io::{Read, Write},
    mem,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use crate::pace::ceiling;

/// Nothing that a test waits for takes longer, unless it never comes.
const DEADLINE: Duration = Duration::from_secs(60);

/// All that has come from one descriptor so far.
#[derive(Debug)]
pub struct Capture(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    so_far: Mutex<SoFar>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct SoFar {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    /// Reads `from` to its end, on a thread of its own.
    pub fn of(from: OwnedFd) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut from = File::from(from);
            let mut buffer = [0; 65_536];
            loop {
                // A terminal whose other side is gone is an error, not an end.
                let length = from.read(&mut buffer).unwrap_or(0);
                let Ok(mut so_far) = writer.so_far.lock() else { return };
                so_far.bytes.extend_from_slice(&buffer[..length]);
                so_far.ended = length == 0;
                writer.more.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
        Self(shared)
    }

    /// What has come, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.so_far.lock().unwrap().bytes).into_owned()
    }

    /// Waits until the text satisfies `wanted`; panics with what has come instead when it ends or takes too long.
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + ceiling(DEADLINE);
        let mut so_far = self.0.so_far.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&so_far.bytes).into_owned();
            if wanted(&text) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!so_far.ended && !left.is_zero(), "waited for {what}, got {text:?}");
            so_far = self.0.more.wait_timeout(so_far, left).unwrap().0;
        }
    }

    /// Waits for a piece of text.
    pub fn until_has(&self, piece: &str) -> String {
        self.until(&format!("{piece:?}"), |text| text.contains(piece))
    }

    /// Waits for the end of the output.
    pub fn until_end(&self) -> String {
        String::from_utf8_lossy(&self.ended().bytes).into_owned()
    }

    /// Waits for the end of the output and takes all of it.
    pub(crate) fn take_all(&self) -> Vec<u8> {
        mem::take(&mut self.ended().bytes)
    }

    fn ended(&self) -> MutexGuard<'_, SoFar> {
        let deadline = Instant::now() + ceiling(DEADLINE);
        let mut so_far = self.0.so_far.lock().unwrap();
        while !so_far.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no end after {:?}", String::from_utf8_lossy(&so_far.bytes));
            so_far = self.0.more.wait_timeout(so_far, left).unwrap().0;
        }
        so_far
    }
}

/// Writes to a pipe or terminal; one that nobody reads any more is passed over.
pub(crate) fn write(to: &OwnedFd, input: &[u8]) {
    File::from(to.try_clone().unwrap()).write_all(input).ok();
}
