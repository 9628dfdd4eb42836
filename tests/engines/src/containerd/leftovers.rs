//! What is there of a pod on the host.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use kata_guest_tests::ceiling;
use rustix::process::Pid;

/// A process, as `/proc` tells of it.
pub struct Process {
    pub pid: Pid,
    pub parent: Option<Pid>,
    /// Of its program, cut as the kernel cuts it.
    pub name: String,
    /// Its words.
    pub line: String,
}

/// All of the host.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let process = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (before, rest) = stat.rsplit_once(") ")?;
        let name = before.split_once('(')?.1.to_owned();
        let parent = Pid::from_raw(rest.split(' ').nth(1)?.parse().ok()?);
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        Some(Process { pid, parent, name, line })
    };
    entries.filter_map(process).collect()
}

/// Waits until no process and no directory is left of a pod. An engine may begin to clean up behind a dead shim only after it
/// has said that the pod is gone.
pub fn nothing_left(id: &str) {
    let deadline = Instant::now() + ceiling(Duration::from_secs(30));
    while let Some(left) = left_of(id) {
        assert!(Instant::now() < deadline, "{left} is left");
        thread::sleep(Duration::from_millis(20));
    }
}

fn left_of(id: &str) -> Option<String> {
    let process = processes().into_iter().map(|one| one.line).find(|line| line.contains(id));
    process.or_else(|| {
        let places = fs::read_dir("/run/kata-shim").into_iter().flatten().flatten();
        let mut names = places.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|name| name.contains(id.get(..20).unwrap_or(id)))
    })
}

/// The shim of a pod.
pub fn shim_of(id: &str) -> Pid {
    let all = processes();
    let shim = all.iter().find(|one| one.line.contains("serve-engine") && one.line.contains(id));
    shim.unwrap().pid
}
