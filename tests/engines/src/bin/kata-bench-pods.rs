//! What `cargo xtask bench` measures by CRI: it says a word on standard input for each thing to be done, and gets a line
//! of JSON for each. So rounds here and rounds of what they are compared with take turns.
//!
//! | word | answer |
//! |---|---|
//! | `round` | milliseconds by name, of a pod with runc and of one with Kata |
//! | `pods N` | what processes there are of N pods with a container each, which go with the next word: pids by name |
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs, io, slice, thread,
    time::{Duration, Instant},
};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, Task, processes,
};
use rustix::process::Pid;

/// Commands in a row; the median counts.
const EXECS: usize = 9;

/// Between two probes: they are no queue.
const PERIOD: Duration = Duration::from_millis(200);

/// Probes of a pod with many containers come together.
const AT_ONCE: usize = 10;

/// Programs that a shell in the guest starts in a row.
const STARTS: usize = 100;

/// What every probe here runs: a link to busybox.
const PROGRAM: &str = "/bin/true";

fn main() {
    let engine = Containerd::start().expect("containerd, KATA_PREFIX and a root are there");
    let mut pods = Vec::new();
    for word in io::stdin().lines() {
        let word = word.unwrap();
        pods.iter().for_each(Pod::remove);
        pods.clear();
        match word.split_once(' ') {
            None if word == "round" => {
                let figures: BTreeMap<String, f64> =
                    [RUNC, KATA].into_iter().flat_map(|handler| round(&engine, handler)).collect();
                println!("{}", serde_json::to_string(&figures).unwrap());
            }
            Some(("pods", count)) => {
                let count: usize = count.parse().unwrap();
                pods.extend((0..count).map(|_| running(&engine, KATA).0));
                println!("{}", serde_json::to_string(&parts(&pods)).unwrap());
            }
            _ => panic!("unknown word {word:?}"),
        }
    }
    pods.iter().for_each(Pod::remove);
}

/// A pod with a container that does nothing, and how long both took.
fn running(engine: &Containerd, handler: Handler) -> (Pod, Duration) {
    let started = Instant::now();
    let pod = Pod::run(engine, handler);
    pod.start(idle(&pod));
    (pod, started.elapsed())
}

fn idle(pod: &Pod) -> kata_engine_tests::containerd::runtime::ContainerConfig {
    pod.script("exec sleep 100000")
}

fn round(engine: &Containerd, handler: Handler) -> Vec<(String, f64)> {
    let (pod, start) = running(engine, handler);
    let container = pod.start(idle(&pod));
    // The first one finds the program's pages cold.
    container.exec(&[PROGRAM]);
    let exec = median((0..EXECS).map(|_| timed(|| drop(container.exec(&[PROGRAM])))).collect());
    let probe = |name: &str| {
        let task = Task::of(engine, &container.id);
        timed(|| assert_eq!(task.exec(&container.id, name, PROGRAM), 0))
    };
    let vmm = parts(slice::from_ref(&pod)).remove("VMM").unwrap_or_default();
    let before = processor_time(&vmm);
    let paced = |number| {
        thread::sleep(PERIOD);
        probe(&format!("one{number}"))
    };
    let idle = median((0..EXECS).map(paced).collect());
    let probe_work = (processor_time(&vmm) - before) / EXECS as f64;
    let together = timed(|| {
        thread::scope(|scope| {
            for number in 0..AT_ONCE {
                let probe = &probe;
                scope.spawn(move || probe(&format!("ten{number}")));
            }
        });
    });
    let before = processor_time(&vmm);
    let (fork, forks) = starts_inside(&container);
    let start_work = (processor_time(&vmm) - before) / (2 * STARTS) as f64;
    pod.remove();
    let figures = [
        ("start", milliseconds(start)),
        ("exec", exec),
        ("probe", idle),
        ("ten probes", together),
        ("program", fork),
        ("ten programs", forks),
        ("probe, processor time of the VMM", probe_work),
        ("program, processor time of the VMM", start_work),
    ];
    figures.map(|(name, figure)| (format!("{}: {name}", handler.0), figure)).into()
}

/// What it takes a shell in the container to start a program and wait for it, and to start ten at once: the time of a
/// script with many less that of one with none, so that neither clock nor way in count.
fn starts_inside(container: &Container<'_>) -> (f64, f64) {
    let script = |starts: usize, body: &str| {
        let text = format!("i=0; while [ $i -lt {starts} ]; do {body}; i=$((i+1)); done");
        timed(|| drop(container.output(&text)))
    };
    let per_start = |starts: usize, body: &str| {
        (script(starts, body) - script(0, body)).max(0.0) / starts as f64
    };
    let together = format!("{} wait", format!("{PROGRAM} & ").repeat(AT_ONCE));
    (per_start(STARTS, PROGRAM), per_start(STARTS / AT_ONCE, &together))
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    milliseconds(started.elapsed())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Milliseconds that the threads of processes have run so far.
fn processor_time(pids: &[u32]) -> f64 {
    let threads = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap());
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e6
}

/// The processes that pods consist of on the host, by name.
fn parts(pods: &[Pod]) -> BTreeMap<String, Vec<u32>> {
    let number = |pid: Pid| pid.as_raw_nonzero().get().unsigned_abs();
    let all = processes();
    // A pod of runc's has none.
    let is_shim =
        |line: &str| line.contains("serve-engine") && pods.iter().any(|pod| line.contains(&pod.id));
    let mut parents: Vec<Pid> =
        all.iter().filter(|one| is_shim(&one.line)).map(|one| one.pid).collect();
    let shims: Vec<u32> = parents.iter().copied().map(number).collect();
    let mut named = BTreeMap::from([("shim".to_owned(), shims)]);
    while !parents.is_empty() {
        let is_child = |parent: Option<Pid>| parent.is_some_and(|parent| parents.contains(&parent));
        let children: Vec<_> = all.iter().filter(|one| is_child(one.parent)).collect();
        for child in &children {
            let name = child.name.trim_start_matches("kata-");
            let name = if name.starts_with("qemu") { "VMM" } else { name };
            named.entry(name.to_owned()).or_default().push(number(child.pid));
        }
        parents = children.iter().map(|child| child.pid).collect();
    }
    named
}
