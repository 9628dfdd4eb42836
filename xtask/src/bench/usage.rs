//! What a process of the host costs: processor time, and memory by what backs it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The mapping that is the guest's memory, in VMM and proxy.
const GUEST_MEMORY: &str = "/memfd:memory-backend-memfd";

/// User and system time of all threads that are alive.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
        let path = task?.path().join("schedstat");
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let nanoseconds = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        total += nanoseconds.with_context(|| format!("understand {}", path.display()))?;
    }
    Ok(Duration::from_nanos(total))
}

/// Proportional set size in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub own: u64,
    /// Of it, without a file behind it.
    pub anonymous: u64,
    /// Nobody else has it mapped; not only what is in `own`, and not in proportion.
    pub private: u64,
    /// Memory of the guest that the process has mapped; not in `own`.
    pub guest: u64,
}

impl Memory {
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(smaps: &str) -> Self {
        let mut memory = Self::default();
        let mut guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            if !first.ends_with(':') {
                guest = line.contains(GUEST_MEMORY);
                continue;
            }
            let size = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
            match (first, guest) {
                ("Pss:", true) => memory.guest += size,
                ("Pss:", false) => memory.own += size,
                ("Private_Clean:" | "Private_Dirty:", false) => memory.private += size,
                ("Anonymous:", false) => memory.anonymous += size,
                _ => {}
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn the_guests_memory_is_nobodys_own() {
        let smaps = "\
55d0-55d8 r-xp 00000000 fe:00 12 /usr/bin/x
Size:                 32 kB
Pss:                  20 kB
Private_Clean:         2 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
7f00-7fff rw-s 00000000 00:01 99 /memfd:memory-backend-memfd (deleted)
Pss:                 900 kB
Private_Dirty:       900 kB
Anonymous:             0 kB
7fff-8000 rw-p 00000000 00:00 0 [heap]
Pss:                   8 kB
Anonymous:             8 kB
";
        assert_eq!(Memory::parse(smaps), Memory { own: 28, anonymous: 12, private: 6, guest: 900 });
    }
}
