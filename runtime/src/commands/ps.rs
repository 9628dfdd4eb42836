//! `ps`: the processes of a container.
//!
//! Engines want pids of the host, of which a container has one; people want the guest's.

use kata_engine_api::{containerd::process::ProcessInfo, record::Status};

use super::{Context, list::align, print, print_json};
use crate::{
    args::{ListFormat, Ps},
    failure::Failure,
};

/// How the shim marks a pid of the guest.
const GUEST_PID: &str = "io.katacontainers.guest_pid";

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

fn host_pids(processes: &[ProcessInfo]) -> Vec<u32> {
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn table(processes: &[ProcessInfo]) -> String {
    let mut lines = vec![["HOST PID", "GUEST PID"].map(str::to_owned)];
    lines.extend(processes.iter().map(|process| {
        let guest = process.info.as_ref().filter(|info| info.type_url == GUEST_PID);
        let guest = guest.and_then(|info| String::from_utf8(info.value.clone()).ok());
        [process.pid.to_string(), guest.unwrap_or_else(|| "-".to_owned())]
    }));
    align(&lines)
}

#[cfg(test)]
mod tests {
    use kata_engine_api::containerd::{any::Any, process::ProcessInfo};

    use super::{GUEST_PID, host_pids, table};

    #[test]
    fn a_container_is_one_process_of_the_host_and_many_of_the_guest() {
        let process = |guest: &str| {
            let info = Any { type_url: GUEST_PID.into(), value: guest.into(), ..Any::default() };
            ProcessInfo { pid: 7, info: Some(info).into(), ..ProcessInfo::default() }
        };
        let processes = [process("1"), process("23")];
        assert_eq!(host_pids(&processes), [7]);
        assert_eq!(table(&processes), "HOST PID   GUEST PID\n7          1\n7          23\n");
    }
}
