//! Processes as `ps` shows them, from what the kernel says of each.

use std::{
    fs::File,
    io::{self, Read},
};

use kata_protocol::agent::ProcessDetails;
use rustix::time::{ClockId, clock_gettime};

/// Longest command that is told: a list of processes has to fit into one answer.
const COMMAND: usize = 256;

/// Longest of the kernel's other words about a process.
const WORDS: usize = 16 << 10;

/// Most processes that are told, for the same reason.
const MOST: usize = 8192;

/// Milliseconds in one of the ticks that the kernel counts CPU time in, whatever its own tick is.
const TICK_MS: u64 = 10;

/// What there is to say of the processes that are still there.
pub fn details(pids: &[u32]) -> Vec<ProcessDetails> {
    pids.iter().take(MOST).filter_map(|pid| describe(*pid)).collect()
}

fn describe(pid: u32) -> Option<ProcessDetails> {
    let words = |file| Some(String::from_utf8_lossy(&read(pid, file, WORDS).ok()?).into_owned());
    let stat = Stat::parse(&words("stat")?)?;
    let status = words("status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
    let arguments = read(pid, "cmdline", COMMAND).unwrap_or_default();
    Some(ProcessDetails {
        guest_pid: pid,
        parent: stat.parent,
        uid: uid.and_then(|uid| uid.parse().ok()).unwrap_or(0),
        cpu_ms: stat.used.saturating_mul(TICK_MS),
        age_ms: since_boot_ms().saturating_sub(stat.begun.saturating_mul(TICK_MS)),
        terminal: stat.terminal,
        command: command(&arguments).unwrap_or_else(|| format!("[{}]", stat.name)),
        ..ProcessDetails::default()
    })
}

/// The beginning of a file: a process says itself where its arguments are, and that may be all of its memory.
fn read(pid: u32, file: &str, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))?.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is told of the kernel's line about a process; times are in ticks.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    terminal: u32,
    /// Of CPU time.
    used: u64,
    /// Since the boot.
    begun: u64,
}

impl Stat {
    /// The name may have anything in it, so the fields begin behind its last bracket. Numbers are those of proc(5), less
    /// the two fields before.
    fn parse(stat: &str) -> Option<Self> {
        let (before, after) = stat.rsplit_once(") ")?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        let number = |of_proc: usize| fields.get(of_proc - 3)?.parse::<u64>().ok();
        Some(Self {
            name,
            parent: number(4)?.try_into().ok()?,
            terminal: number(7).and_then(|device| device.try_into().ok()).unwrap_or(0),
            used: number(14)?.saturating_add(number(15)?),
            begun: number(22)?,
        })
    }
}

/// The clock that processes' beginnings are told by.
fn since_boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let ms = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

fn command(arguments: &[u8]) -> Option<String> {
    let mut text = String::from_utf8_lossy(arguments).replace('\0', " ");
    // What stands for a byte that is no text is three long.
    text.truncate(text.floor_char_boundary(COMMAND));
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{COMMAND, Stat, command, read};

    #[test]
    fn a_name_with_brackets_hides_no_field() {
        let stat = "7 (a) (b) S 3 7 7 34816 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 9 0";
        let parsed =
            Stat { name: "a) (b".to_owned(), parent: 3, terminal: 34816, used: 33, begun: 9 };
        assert_eq!(Stat::parse(stat), Some(parsed));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn arguments_are_one_line() {
        assert_eq!(command(b"sh\0-c\0exit\0").as_deref(), Some("sh -c exit"));
        assert_eq!(command(b""), None);
    }

    #[test]
    fn no_more_is_read_than_is_told() {
        let long = read(std::process::id(), "maps", COMMAND).unwrap();
        assert_eq!(command(&long).map(|text| text.len() <= 256), Some(true));
        assert_eq!(long.len(), 256);
        assert_eq!(command(&[0xff; 256]).map(|text| text.len()), Some(255));
    }
}
