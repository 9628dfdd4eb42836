//! `ps`: the processes of a container.
//!
//! Engines want pids of the host, of which a container has one; people want the guest's.

use std::collections::BTreeSet;

use kata_engine_api::{
    containerd::process::ProcessInfo, guest_process::GuestProcess, record::Status,
};

use super::{Context, list::align, print, print_json};
use crate::{
    args::{ListFormat, Ps},
    failure::Failure,
};

impl Context<'_> {
    pub(super) fn ps(&self, typed: &Ps) -> Result<(), Failure> {
        if !typed.ps_options.is_empty() {
            self.journal.warn("options of ps(1) have no meaning here");
        }
        let dir = self.root.open(&typed.id)?;
        let processes = match self.record(&dir, &typed.id)?.status {
            Status::Stopped => Vec::new(),
            _ => self.with_shim(&typed.id, async |shim| shim.processes().await)?,
        };
        match typed.format {
            ListFormat::Json if processes.is_empty() => print("null\n"),
            ListFormat::Json => print_json(&host_pids(&processes)),
            ListFormat::Table => print(&table(&processes)),
        }
    }
}

fn host_pids(processes: &[ProcessInfo]) -> BTreeSet<u32> {
    processes.iter().map(|process| process.pid).collect()
}

fn table(processes: &[ProcessInfo]) -> String {
    let mut lines = vec![["HOST PID", "PID", "PPID", "UID", "TIME", "CMD"].map(str::to_owned)];
    lines.extend(processes.iter().map(|process| {
        let guest = process.info.as_ref().filter(|info| info.type_url == GuestProcess::TYPE);
        let guest = guest.and_then(|info| serde_json::from_slice::<GuestProcess>(&info.value).ok());
        let host = process.pid.to_string();
        match guest {
            Some(GuestProcess { pid, parent, uid, cpu_ms, command }) => {
                [host, pid.to_string(), parent.to_string(), uid.to_string(), time(cpu_ms), command]
            }
            None => [host, "-".into(), "-".into(), "-".into(), "-".into(), "-".into()],
        }
    }));
    align(&lines)
}

/// As ps(1) writes CPU time.
fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use kata_engine_api::{
        containerd::{any::Any, process::ProcessInfo},
        guest_process::GuestProcess,
    };

    use super::{host_pids, table, time};

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
        let table = table(&processes);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[2], ["7", "23", "0", "0", "00:00:00", "sleep", "9"]);
        assert_eq!(rows[3][1], "-");
    }

    #[test]
    fn cpu_time_is_hours_minutes_and_seconds() {
        assert_eq!(time(3_725_999), "01:02:05");
    }
}
