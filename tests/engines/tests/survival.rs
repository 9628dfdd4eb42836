//! What a pod survives, and what is left when it does not.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{Containerd, KATA, Pod};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_pod_goes_on_while_its_engine_is_killed_and_restarted() {
    let Some(mut engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let script = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.05; done";
    let container = pod.start(pod.script(script));
    for restarts in 1..=2 {
        engine.restart();
        // It goes on counting, and is still controllable.
        let more = restarts * 20;
        container.output(&format!("until [ 0$(cat /tmp/count) -gt {more} ]; do sleep 0.05; done"));
    }
    container.stop(0);
    let numbers: Vec<u64> = container
        .log_lines()
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    // What was on its way through a killed engine may be gone: not more than a fifo and a line.
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!(
        numbers.len() > 10 && *numbers.last().unwrap() < numbers.len() as u64 + 50,
        "{numbers:?}"
    );
    pod.remove();
}

#[test]
fn a_killed_shim_is_an_end_that_is_told_and_leaves_nothing() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let container = pod.start(pod.script("exec sleep 1000"));
    let shim = shim_of(&pod.id);
    kill_process(shim, Signal::KILL).unwrap();
    assert_ne!(container.ended().exit_code, 0);
    pod.remove();
    let ids = [&pod.id, &container.id];
    let has_one = |line: &str| ids.iter().any(|id| line.contains(id.as_str()));
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Some((_, line)) = processes().into_iter().find(|(_, line)| has_one(line)) {
        assert!(Instant::now() < deadline, "{line} is left");
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = fs::read_dir("/run/kata-shim").map(|all| all.flatten().count());
    assert!(
        left.is_err()
            || !fs::read_dir("/run/kata-shim")
                .unwrap()
                .flatten()
                .any(|entry| { entry.file_name().to_string_lossy().contains(&pod.id[..20]) })
    );
}

fn shim_of(id: &str) -> Pid {
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
