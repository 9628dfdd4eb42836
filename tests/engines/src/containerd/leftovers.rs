//! What is there of a pod on the host.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::Pid;

/// Waits until no process and no directory is left of a pod.
pub fn nothing_left(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let of_it = |line: &str| line.contains(id);
    while let Some((_, line)) = processes().into_iter().find(|(_, line)| of_it(line)) {
        assert!(Instant::now() < deadline, "{line} is left");
        thread::sleep(Duration::from_millis(20));
    }
    let places = fs::read_dir("/run/kata-shim").into_iter().flatten().flatten();
    let mut names = places.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert_eq!(names.find(|name| name.contains(&id[..20])), None);
}

/// The shim of a pod.
pub fn shim_of(id: &str) -> Pid {
    let all = processes();
    let shim = all.iter().find(|(_, line)| line.contains("serve-engine") && line.contains(id));
    shim.unwrap().0
}

fn processes() -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}
