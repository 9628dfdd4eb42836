//! What a pod survives, and what is left when it does not.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Read,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use kata_engine_tests::containerd::{
    Container, Containerd, KATA, Pod, RUNC, Release, Task, nothing_left, shim_of,
};
use kata_guest_tests::repetitions;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    process::{Pid, Signal, kill_process},
};

#[test]
fn a_pod_goes_on_while_its_engine_is_killed_and_restarted() {
    for handler in [RUNC, KATA] {
        let Some(mut engine) = Containerd::start() else { return };
        let pod = Pod::run(&engine, handler);
        let script = "i=0; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.05; done";
        let container = pod.start(pod.script(script));
        let restarts = repetitions(10).max(2);
        for restarts in 1..=restarts {
            engine.restart();
            // It goes on counting, and is still controllable.
            let more = restarts * 20;
            container
                .output(&format!("until [ 0$(cat /tmp/count) -gt {more} ]; do sleep 0.05; done"));
        }
        container.stop(0);
        let log = container.log_lines();
        let numbers: Vec<usize> =
            log.iter().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() > 10, "{numbers:?}");
        // What an engine has read and not yet written is gone with it; with either runtime, a line each time at most.
        let lost = numbers.last().unwrap() - numbers.len();
        println!("{}: {lost} lines lost to {restarts} kills", handler.0);
        assert!(lost <= restarts, "{}: {lost} of {numbers:?}", handler.0);
        pod.remove();
    }
}

#[test]
fn no_line_is_lost_to_readers_that_come_and_go() {
    // Twice what a fifo holds and more, so that the writer has to wait for each of them.
    const LINES: usize = 40_000;
    const READERS: usize = 10;
    let Some(engine) = Containerd::start() else { return };
    for handler in [RUNC, KATA] {
        let pod = Pod::run(&engine, handler);
        let container = pod.start(pod.script("exec sleep 1000"));
        let fifo = engine.file(handler.0);
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // runc's shim does not start anything before somebody reads.
        let first = open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let task = Task::of(&engine, &container.id);
        let words = ["seq", &LINES.to_string()];
        task.begin((&container.id, "count"), &words, fifo.to_str().unwrap());
        drop(first);
        let mut text = Vec::new();
        for _ in 0..READERS {
            let mut block = vec![0; 8192];
            let mut reader = fs::File::open(&fifo).unwrap();
            reader.read_exact(&mut block).unwrap();
            text.extend(block);
        }
        let wanted: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
        let mut rest = vec![0; wanted.len() - text.len()];
        fs::File::open(&fifo).unwrap().read_exact(&mut rest).unwrap();
        text.extend(rest);
        assert!(text == wanted.as_bytes(), "{}: lines are missing or torn", handler.0);
        assert_eq!(task.end(&container.id, "count"), 0);
        pod.remove();
    }
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
    nothing_left(&pod.id);
    nothing_left(&container.id);
}

#[test]
fn a_pod_whose_guest_hangs_is_stopped_and_leaves_nothing() {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        let pod = Pod::run(&engine, KATA);
        let containers = [(); 2].map(|()| pod.start(pod.script("exec sleep 1000")));
        kill_process(vmm_of(&containers[0]), Signal::STOP).unwrap();
        // Well before a kubelet would give up, and the one whose guest obeys nobody takes the other along.
        containers[0].stop(0);
        for container in &containers {
            assert_eq!(container.ended().exit_code, 137);
        }
        pod.remove();
        nothing_left(&pod.id);
        containers.iter().for_each(|container| nothing_left(&container.id));
    }
}

/// The VMM of a container of a pod, as its shim has recorded it.
fn vmm_of(container: &Container<'_>) -> Pid {
    let places = fs::read_dir("/run/kata-shim").unwrap().flatten();
    let record = |place: fs::DirEntry| {
        fs::read(place.path().join("containers").join(&container.id).join("state.json")).ok()
    };
    let record: serde_json::Value =
        serde_json::from_slice(&places.filter_map(record).next().unwrap()).unwrap();
    Pid::from_raw(record["vmm_pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
}

#[test]
fn pods_that_come_and_go_beside_each_other_leave_nothing() {
    let Some(engine) = Containerd::start() else { return };
    let (pods, at_a_time) = (repetitions(20), 5);
    let left = AtomicUsize::new(pods);
    let ids = Mutex::new(Vec::new());
    let next = || left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
    let one = || {
        let pod = Pod::run(&engine, KATA);
        let server = pod.start(pod.script("while :; do echo hello | nc -l -p 80; done"));
        let client = pod.start(pod.script("until nc 127.0.0.1 80; do :; done"));
        assert_eq!(client.ended().exit_code, 0);
        let mut missing = pod.script("");
        missing.command = vec!["/no/such".into()];
        let refused = pod.create(missing).and_then(|container| container.start()).unwrap_err();
        assert!(refused.message.contains("/no/such"), "{refused:?}");
        assert_eq!(server.output("echo still"), "still");
        pod.remove();
        ids.lock().unwrap().push(pod.id.clone());
    };
    thread::scope(|scope| {
        for _ in 0..at_a_time.min(pods) {
            scope.spawn(|| {
                while next() {
                    one();
                }
            });
        }
    });
    let ids = ids.into_inner().unwrap();
    assert_eq!(ids.len(), pods);
    ids.iter().for_each(|id| nothing_left(id));
}
