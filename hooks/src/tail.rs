//! The end of an output that may be endless.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read};

/// Enough for the line that says why, and little enough for an error message.
const KEPT: usize = 256;

/// What one read takes: as much as a pipe holds.
const BLOCK: usize = 64 * 1024;

/// The reading end of a hook's stream, and the last of what came out of it.
#[derive(Debug)]
pub struct Tail {
    /// None once it has ended.
    from: Option<OwnedFd>,
    kept: Vec<u8>,
    cut: bool,
}

impl Tail {
    /// Of a pipe whose reads do not block.
    pub fn of(from: OwnedFd) -> Self {
        Self { from: Some(from), kept: Vec::new(), cut: false }
    }

    /// The pipe, while it may have more.
    pub fn open(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Reads once, if there is something to read; says whether there was.
    pub fn read(&mut self) -> bool {
        let Some(from) = &self.from else { return false };
        let mut block = vec![0; BLOCK];
        match read(from, &mut block) {
            Ok(length @ 1..) => {
                self.keep(&block[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // An end, or a pipe that fails: there is no more.
            Ok(0) | Err(_) => {
                self.from = None;
                false
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let over = self.kept.len().saturating_sub(KEPT);
        if over > 0 {
            self.kept.drain(..over);
            self.cut = true;
        }
    }

    /// What was kept, as text.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim();
        if self.cut { format!("...{text}") } else { text.to_owned() }
    }
}
