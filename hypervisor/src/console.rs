//! The guest's serial console: the last of it, and what its last words mean.
//!
//! Everything here comes from the guest: nothing is kept but a bounded tail, and a claim of death can end nothing but
//! the VM that makes it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

/// Bytes that are kept.
const RING: usize = 64 * 1024;

/// A longer line is looked at in its first bytes only.
const LINE: usize = 1024;

/// Lines of the console that an end tells.
const LAST_WORDS: usize = 20;

const PANIC: &str = "Kernel panic - not syncing: ";
const INIT_DIED: &str = "Attempted to kill init!";
const OFF: [&str; 3] =
    ["reboot: Power down", "reboot: System halted", "reboot: Power off not available"];

/// What a guest kernel says when it comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fatal {
    /// It panicked.
    Panic,
    /// Its PID 1 ended.
    InitDied,
    /// It switched itself off, or halted. A machine without ACPI goes on running all the same.
    Off,
}

/// The tail of a console, fed by one reader.
#[derive(Debug)]
pub struct Console {
    ring: Mutex<VecDeque<u8>>,
    line: Mutex<Vec<u8>>,
    fatal: watch::Sender<Option<Fatal>>,
}

impl Default for Console {
    fn default() -> Self {
        Self { ring: Mutex::default(), line: Mutex::default(), fatal: watch::Sender::new(None) }
    }
}

impl Console {
    /// Takes what the guest wrote.
    pub fn feed(&self, bytes: &[u8]) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = &bytes[bytes.len().saturating_sub(RING)..];
            let excess = (ring.len() + bytes.len()).saturating_sub(RING);
            ring.drain(..excess);
            ring.extend(bytes);
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' {
                self.judge(&line);
                line.clear();
            } else if line.len() < LINE {
                line.push(byte);
            }
        }
    }

    fn judge(&self, line: &[u8]) {
        if let Some(found) = fatal(&String::from_utf8_lossy(line)) {
            // The first word counts: a panic while panicking says less.
            self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(found).is_none());
        }
    }

    /// The last 64 KiB, as text.
    pub fn tail(&self) -> String {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(ring.make_contiguous()).into_owned()
    }

    /// What the guest said of its own death, so far.
    pub fn fatal(&self) -> Option<Fatal> {
        *self.fatal.borrow()
    }

    /// Waits until the guest says that it dies; for ever if it does not.
    pub async fn dying(&self) -> Fatal {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await.map(|fatal| *fatal) {
            Ok(Some(fatal)) => fatal,
            // The sender is `self`'s, so it outlives the wait.
            _ => std::future::pending().await,
        }
    }

    /// The lines from the panic on, or the last ones; printable characters only.
    pub fn last_words(&self) -> String {
        let tail = self.tail();
        let lines: Vec<&str> = tail.lines().collect();
        let start = lines
            .iter()
            .position(|line| fatal(line).is_some())
            .unwrap_or_else(|| lines.len().saturating_sub(LAST_WORDS));
        let words =
            lines.iter().skip(start).take(LAST_WORDS).map(|line| {
                line.chars().filter(|c| !c.is_control()).take(LINE).collect::<String>()
            });
        words.collect::<Vec<_>>().join("\n")
    }
}

/// The kernel's message starts the line, behind its time stamp: a program's name or output in the middle of another
/// message is not taken for it.
fn fatal(line: &str) -> Option<Fatal> {
    let line = line.trim_start_matches('\r');
    let text = match line.strip_prefix('[') {
        Some(rest) => {
            let (time, text) = rest.split_once("] ")?;
            let digits = time.trim_start();
            digits.chars().all(|c| c.is_ascii_digit() || c == '.').then_some(text)?
        }
        None => line,
    };
    if OFF.iter().any(|off| text.starts_with(off)) {
        return Some(Fatal::Off);
    }
    let reason = text.strip_prefix(PANIC)?;
    Some(if reason.starts_with(INIT_DIED) { Fatal::InitDied } else { Fatal::Panic })
}

#[cfg(test)]
mod tests {
    use proptest::proptest;

    use super::{Console, Fatal, LINE, RING, fatal};

    #[test]
    fn a_panic_is_known_by_its_line() {
        let panic = "[    1.5] Kernel panic - not syncing: sysrq triggered crash";
        let init =
            "[   12.25] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000";
        assert_eq!(fatal(panic), Some(Fatal::Panic));
        assert_eq!(fatal(init), Some(Fatal::InitDied));
        assert_eq!(fatal("Kernel panic - not syncing: VFS\r"), Some(Fatal::Panic));
        assert_eq!(fatal("[    2.0] reboot: Power down\r"), Some(Fatal::Off));
        assert_eq!(fatal("[    2.0] reboot: Restarting system"), None);
    }

    #[test]
    fn what_a_program_is_called_is_no_panic() {
        assert_eq!(fatal("[ 1.0] Kernel panic - [42]: segfault at 0"), None);
        assert_eq!(fatal("[ 1.0] sh: Kernel panic - not syncing: x"), None);
        assert_eq!(fatal("[x] Kernel panic - not syncing: x"), None);
    }

    #[test]
    fn a_message_in_pieces_is_one_message() {
        let console = Console::default();
        console.feed(b"boot\n[ 1.0] Kernel panic - not ");
        assert_eq!(console.fatal(), None);
        console.feed(b"syncing: Attempted to kill init!\r\nKernel panic - not syncing: again\n");
        assert_eq!(console.fatal(), Some(Fatal::InitDied));
        assert_eq!(console.last_words().lines().count(), 2);
    }

    #[test]
    fn only_the_tail_is_kept() {
        let console = Console::default();
        console.feed(&vec![b'a'; RING * 3]);
        console.feed(b"\nend\n");
        let tail = console.tail();
        assert_eq!(tail.len(), RING);
        assert!(tail.ends_with("a\nend\n"));
        assert!(console.line.lock().unwrap().capacity() <= LINE * 2);
    }

    #[test]
    fn terminal_sequences_do_not_reach_the_reader() {
        let console = Console::default();
        console.feed(b"\x1b[2Jhello\x07\n");
        assert_eq!(console.last_words(), "[2Jhello");
    }

    proptest! {
        #[test]
        fn anything_may_be_fed(chunks: Vec<Vec<u8>>) {
            let console = Console::default();
            for chunk in &chunks {
                console.feed(chunk);
            }
            assert!(console.last_words().lines().count() <= super::LAST_WORDS);
        }
    }
}
