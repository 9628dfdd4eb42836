//! `ps`: the processes of a container.
//!
//! Engines want pids of the host, of which a container has one; people want the guest's.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kata_engine_api::{
    containerd::process::ProcessInfo, guest_process::GuestProcess, record::Status,
    timestamp::rfc3339,
};

use super::{Context, NOT_RUNNING, has_stopped, list::align, print, print_json_line};
use crate::{
    args::{ListFormat, Ps},
    failure::Failure,
    shim_client::ShimClient,
};

impl Context<'_> {
    pub(super) fn ps(&self, typed: &Ps) -> Result<(), Failure> {
        if !typed.ps_options.is_empty() {
            self.journal.warn("options of ps(1) have no meaning here");
        }
        let dir = self.root.open(&typed.id)?;
        let status = self.record(&dir, &typed.id)?.status;
        let processes = match status {
            Status::Stopped => Vec::new(),
            Status::Running if typed.format == ListFormat::Table => {
                self.with_shim(&typed.id, NOT_RUNNING, told)?
            }
            _ => self.with_shim(&typed.id, NOT_RUNNING, async |shim| shim.processes().await)?,
        };
        match typed.format {
            ListFormat::Json if processes.is_empty() => print("null\n"),
            ListFormat::Json => print_json_line(&host_pids(&processes)),
            ListFormat::Table if status == Status::Running && !processes.iter().any(is_told) => {
                // It may have ended while the guest was asked.
                match has_stopped(&dir) {
                    true => print(&table(&[], SystemTime::now())),
                    false => Err(Failure::GuestSilent { call: "ps" }),
                }
            }
            ListFormat::Table => print(&table(&processes, SystemTime::now())),
        }
    }
}

/// The shim waits a second for the guest. One that is merely busy has answered after a few.
const ATTEMPTS: usize = 5;

async fn told(shim: &ShimClient) -> Result<Vec<ProcessInfo>, Failure> {
    let mut processes = shim.processes().await?;
    for _ in 1..ATTEMPTS {
        if processes.iter().any(is_told) {
            break;
        }
        processes = shim.processes().await?;
    }
    Ok(processes)
}

/// Whether the guest has said what it is.
fn is_told(process: &ProcessInfo) -> bool {
    process.info.as_ref().is_some_and(|info| info.type_url == GuestProcess::TYPE)
}

fn host_pids(processes: &[ProcessInfo]) -> BTreeSet<u32> {
    processes.iter().map(|process| process.pid).collect()
}

/// As `ps -ef` has them; the pids are the guest's.
const COLUMNS: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

fn table(processes: &[ProcessInfo], now: SystemTime) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(processes.iter().map(|process| {
        let guest = process.info.as_ref().filter(|info| info.type_url == GuestProcess::TYPE);
        let guest = guest.and_then(|info| serde_json::from_slice::<GuestProcess>(&info.value).ok());
        guest.map_or_else(|| ["-"; 8].map(str::to_owned), |guest| row(guest, now))
    }));
    align(&lines)
}

fn row(process: GuestProcess, now: SystemTime) -> [String; 8] {
    let user = match process.uid {
        0 => "root".to_owned(),
        // The guest's names are the container's own business.
        uid => uid.to_string(),
    };
    let busy = process.cpu_ms.saturating_mul(100) / process.age_ms.max(1);
    [
        user,
        process.pid.to_string(),
        process.parent.to_string(),
        busy.min(99).to_string(),
        begun(process.age_ms, now),
        terminal(process.terminal),
        time(process.cpu_ms),
        process.command,
    ]
}

/// Hour and minute of the last day, before that month and day; in UTC, as all that is told here.
fn begun(age_ms: u64, now: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let begun = now.checked_sub(Duration::from_millis(age_ms));
    // A guest may say anything.
    let begun = rfc3339(begun.map_or(UNIX_EPOCH, |begun| begun.max(UNIX_EPOCH)));
    let part = |from: usize, to: usize| begun.get(from..to).unwrap_or_default().to_owned();
    if age_ms < 24 * 3_600_000 {
        return part(11, 16);
    }
    let month = part(5, 7).parse::<usize>().ok().and_then(|month| MONTHS.get(month - 1));
    format!("{}{}", month.unwrap_or(&"?"), part(8, 10))
}

/// As ps(1) names it: eight majors are those of pseudo-terminals.
fn terminal(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

/// As ps(1) writes CPU time.
fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use kata_engine_api::{
        containerd::{any::Any, process::ProcessInfo},
        guest_process::GuestProcess,
    };

    use super::{COLUMNS, begun, host_pids, table, terminal, time};

    #[test]
    fn a_container_is_one_process_of_the_host_and_many_of_the_guest() {
        let process = |pid: u32, command: &str| {
            let process = GuestProcess { pid, command: command.into(), ..Default::default() };
            let value = serde_json::to_vec(&process).unwrap();
            let info = Any { type_url: GuestProcess::TYPE.into(), value, ..Any::default() };
            ProcessInfo { pid: 7, info: Some(info).into(), ..ProcessInfo::default() }
        };
        let processes = [process(1, "sh"), process(23, "sleep 9"), ProcessInfo::default()];
        assert_eq!(host_pids(&processes[..2]).into_iter().collect::<Vec<_>>(), [7]);
        let table = table(&processes, UNIX_EPOCH);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], COLUMNS);
        assert_eq!(rows[2], ["root", "23", "0", "0", "00:00", "?", "00:00:00", "sleep", "9"]);
        assert_eq!(rows[3][1], "-");
    }

    #[test]
    fn a_beginning_is_told_as_ps_tells_it() {
        let now = UNIX_EPOCH + Duration::from_secs(40 * 86_400 + 3600);
        assert_eq!(begun(60_000, now), "00:59");
        assert_eq!(begun(2 * 86_400_000, now), "Feb08");
        assert_eq!(begun(u64::MAX, now), "Jan01");
    }

    #[test]
    fn terminals_have_the_names_of_their_devices() {
        assert_eq!([0, 0x8803, 0x8901, 0x0501].map(terminal), ["?", "pts/3", "pts/257", "5:1"]);
    }

    #[test]
    fn cpu_time_is_hours_minutes_and_seconds() {
        assert_eq!(time(3_725_999), "01:02:05");
    }
}
