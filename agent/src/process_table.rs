//! Processes as `ps` shows them, from what the kernel says of each.

use std::fs;

use kata_protocol::agent::ProcessDetails;

/// Longest command that is told: a list of processes has to fit into one answer.
const COMMAND: usize = 256;

/// Most processes that are told, for the same reason.
const MOST: usize = 8192;

/// Milliseconds in one of the ticks that the kernel counts CPU time in, whatever its own tick is.
const TICK_MS: u64 = 10;

/// What there is to say of the processes that are still there.
pub fn details(pids: &[u32]) -> Vec<ProcessDetails> {
    pids.iter().take(MOST).filter_map(|pid| describe(*pid)).collect()
}

fn describe(pid: u32) -> Option<ProcessDetails> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (name, parent, ticks) = parse_stat(&read("stat").ok()?)?;
    let status = read("status").ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(ProcessDetails {
        guest_pid: pid,
        parent,
        uid: uid.and_then(|uid| uid.parse().ok()).unwrap_or(0),
        cpu_ms: ticks.saturating_mul(TICK_MS),
        command: command(&arguments).unwrap_or_else(|| format!("[{name}]")),
        ..ProcessDetails::default()
    })
}

/// Name, parent and ticks of CPU time. The name may have anything in it, so the fields begin behind its last bracket.
fn parse_stat(stat: &str) -> Option<(String, u32, u64)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    // The fourteenth and fifteenth of the file.
    let mut times = fields.skip(9).map(|field| field.parse::<u64>().unwrap_or(0));
    Some((name, parent, times.next()?.saturating_add(times.next()?)))
}

fn command(arguments: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(arguments.get(..COMMAND).unwrap_or(arguments));
    let text = text.replace('\0', " ");
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{command, parse_stat};

    #[test]
    fn a_name_with_brackets_hides_no_field() {
        let stat = "7 (a) (b) S 3 7 7 0 -1 4194560 1 0 0 0 11 22 0 0 20 0 1 0 9 0";
        assert_eq!(parse_stat(stat), Some(("a) (b".to_owned(), 3, 33)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn arguments_are_one_line_of_bounded_length() {
        assert_eq!(command(b"sh\0-c\0exit\0").as_deref(), Some("sh -c exit"));
        assert_eq!(command(b""), None);
        assert_eq!(command(&[b'x'; 1000]).map(|text| text.len()), Some(256));
    }
}
