//! Pods on a machine that has not memory for all of them.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use kata_engine_tests::containerd::{
    Container, Containerd, Handler, KATA, Pod, RUNC, Release, config, nothing_left, processes,
    resources, runtime::LinuxContainerResources, shim_of,
};
use kata_guest_tests::{HostGroup, cgroups_named, repetitions, unique};

const MIB: u64 = 1024 * 1024;

/// Less than any guest takes to come up, with its VMM.
const TOO_LITTLE: u64 = 80 * MIB;

/// A control group whose memory is short, gone when dropped.
struct Scarce {
    group: HostGroup,
    name: String,
}

impl Scarce {
    fn new() -> Self {
        let name = unique("kata-scarce");
        let group = HostGroup::new(&name);
        fs::create_dir(group.directory("memory")).unwrap();
        // Memory that is swapped out is none that was taken. A kernel may be without swap.
        let swap = group.file("memory", ["memory.swappiness", "memory.swap.max"]);
        if swap.exists() {
            fs::write(swap, "0").unwrap();
        }
        Self { group, name }
    }

    /// Leaves it so much more than it has.
    fn leave(&self, bytes: u64) {
        let usage = self.group.read("memory", ["memory.usage_in_bytes", "memory.current"]);
        self.allow(usage.parse::<u64>().unwrap() + bytes);
    }

    /// Lets it have so much.
    fn allow(&self, bytes: u64) {
        let file = self.group.file("memory", ["memory.limit_in_bytes", "memory.max"]);
        fs::write(file, bytes.to_string()).unwrap();
    }

    /// Makes it the group of a pod whose containers may have so much together.
    fn run_as_pod(&self, engine: &Containerd, handler: Handler, sum: u64) -> Result<Pod, String> {
        let mut config = config(engine);
        let linux = config.linux.as_mut().unwrap();
        linux.cgroup_parent = format!("/{}", self.name);
        let memory_limit_in_bytes = i64::try_from(sum).unwrap();
        linux.resources =
            Some(LinuxContainerResources { memory_limit_in_bytes, ..Default::default() }).into();
        Pod::run_with(engine, handler, config).map_err(|status| status.message)
    }

    /// Runs a pod in it.
    fn run(&self, engine: &Containerd) -> Result<Pod, String> {
        let mut config = config(engine);
        let pod = config.metadata.name.clone();
        config.linux.as_mut().unwrap().cgroup_parent = format!("/{}/{pod}", self.name);
        Pod::run_with(engine, KATA, config).map_err(|status| status.message)
    }

    fn below(&self) -> Vec<String> {
        let mut groups = cgroups_named(&self.name);
        groups.retain(|path| !path.ends_with(&self.name));
        groups
    }
}

impl Drop for Scarce {
    fn drop(&mut self) {
        // What a failed test has left is left.
        fs::remove_dir(self.group.directory("memory")).ok();
    }
}

/// The sandbox that could not be made, as the engine names it.
fn sandbox_of(message: &str) -> &str {
    message.split('"').find(|word| word.len() == 64).unwrap()
}

#[test]
fn pods_that_no_memory_is_left_for_fail_by_name_and_the_others_go_on() {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        short_of_memory(&engine);
    }
}

fn short_of_memory(engine: &Containerd) {
    let scarce = Scarce::new();
    let old = scarce.run(engine).unwrap();
    let container = old.start(old.script("exec sleep 1000"));
    scarce.leave(TOO_LITTLE);
    let (pods, at_a_time) = (repetitions(20), 5);
    let left = AtomicUsize::new(pods);
    let failures = Mutex::new(Vec::new());
    let next = || left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
    thread::scope(|scope| {
        for _ in 0..at_a_time.min(pods) {
            scope.spawn(|| {
                while next() {
                    let failure = scarce.run(engine).map(|pod| pod.id).unwrap_err();
                    failures.lock().unwrap().push(failure);
                }
            });
        }
    });
    for failure in failures.into_inner().unwrap() {
        assert!(failure.contains("the host was out of memory: "), "{failure}");
        nothing_left(sandbox_of(&failure));
    }
    assert_eq!(container.output("echo still"), "still");
    // Who runs is struck only when it takes what is not there, and its end is told as runc's would be.
    scarce.leave(MIB);
    let fill = "head -c 100000000 /dev/zero > /dev/shm/file";
    container.try_exec(&["sh", "-c", fill], Duration::ZERO).ok();
    let ended = container.ended();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    old.remove();
    nothing_left(&old.id);
    assert_eq!(scarce.below(), Vec::<String>::new());
}

/// A pod's group as a kubelet makes it: its containers' limits, and what a runtime class says beside them.
const POD: u64 = 256 * MIB;
const WITH_OVERHEAD: u64 = POD + 176 * MIB;

fn in_the_group_of_a_pod(claim: impl Fn(&Pod, Handler)) {
    in_a_group((WITH_OVERHEAD, POD), claim);
}

/// A pod whose containers may have so much together, if that is told, in a group that allows so much.
fn in_a_group((allowed, sum): (u64, u64), claim: impl Fn(&Pod, Handler)) {
    for release in Release::tried() {
        let Some(engine) = Containerd::start_release(release) else { return };
        for handler in [RUNC, KATA] {
            let group = Scarce::new();
            group.allow(allowed);
            let pod = group.run_as_pod(&engine, handler, sum).unwrap();
            claim(&pod, handler);
            pod.remove();
            assert_eq!(group.below(), Vec::<String>::new(), "{}", handler.0);
        }
    }
}

#[test]
fn a_container_whose_files_are_more_than_its_pod_may_have_goes_on() {
    in_the_group_of_a_pod(|pod, handler| {
        let mut config = pod.script("exec sleep 1000");
        resources(&mut config).memory_limit_in_bytes = i64::try_from(POD).unwrap();
        let container = pod.start(config);
        if handler == KATA {
            let total = container.output("awk '/MemTotal/ {print $2}' /proc/meminfo");
            // Beside it there is room for VMM and proxy, in KiB.
            let room = (WITH_OVERHEAD - 64 * MIB) / 1024;
            assert!(total.parse::<u64>().unwrap() < room, "{total} KiB of a group's {room}");
        }
        // By parts, so that what is read is not what was just written.
        let script = "for n in 1 2 3 4 5 6 7 8; do \
            dd if=/dev/zero of=/file$n bs=1M count=40 2>/dev/null || exit 1; done; \
            cat /file? | wc -c";
        assert_eq!(container.output(script), (320 * MIB).to_string(), "{}", handler.0);
        assert_eq!(container.output("rm /file?; echo still"), "still");
    });
}

#[test]
fn of_containers_that_want_more_than_their_pod_may_have_one_ends_and_the_other_answers() {
    in_the_group_of_a_pod(|pod, handler| {
        let small = pod.start(pod.script("exec sleep 1000"));
        // Without a limit of its own, as where the pod alone has one.
        let greedy = pod.start(pod.script("exec dd if=/dev/zero of=/dev/null bs=900M count=1"));
        let ended = greedy.ended();
        let end = (ended.exit_code, ended.reason.as_str());
        assert_eq!(end, (137, "OOMKilled"), "{}", handler.0);
        assert_eq!(small.output("echo still"), "still", "{}", handler.0);
        let next = pod.start(pod.script("exec sleep 1000"));
        assert_eq!(next.output("echo on"), "on", "{}", handler.0);
    });
}

/// As a kubelet makes it without a runtime class, and nobody tells a sum.
#[test]
fn a_container_may_have_all_that_the_group_of_its_pod_allows() {
    in_a_group((POD, 0), |pod, handler| {
        let mut config = pod.script("exec sleep 1000");
        resources(&mut config).memory_limit_in_bytes = i64::try_from(POD).unwrap();
        let container = pod.create(config).unwrap();
        let started = container.start();
        assert!(started.is_ok(), "{}: {started:?}", handler.0);
        // The VM has what VMM and proxy can leave of it at all: half of it under emulation.
        let taken =
            container.output("head -c 48000000 /dev/zero >/dev/shm/taken; wc -c </dev/shm/taken");
        assert_eq!(taken.trim(), "48000000", "{}", handler.0);
    });
}

/// runc's containers need no more than they take.
#[test]
fn a_group_that_no_vm_fits_into_is_refused_by_its_limit() {
    let Some(engine) = Containerd::start() else { return };
    let group = Scarce::new();
    group.allow(100 * MIB);
    let message = group.run_as_pod(&engine, KATA, 64 * MIB).map(|pod| pod.id).unwrap_err();
    assert!(message.contains("allows 100 MiB"), "{message}");
    assert_eq!(group.below(), Vec::<String>::new());
}

/// What the OOM killer goes by for the VMM and the proxy of a pod.
fn scores(pod: &Pod) -> Vec<String> {
    let shim = shim_of(&pod.id);
    let of_vm = processes().into_iter().filter(|process| {
        process.parent == Some(shim)
            && ["qemu", "kata-proxy"].iter().any(|it| process.name.starts_with(it))
    });
    of_vm.map(|process| score(process.pid.as_raw_nonzero()).to_string()).collect()
}

fn score(pid: impl std::fmt::Display) -> i16 {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_vm_is_spared_as_the_dearest_of_its_containers_is() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    assert_eq!(scores(&pod), ["1000", "1000"]);
    // containerd has ours.
    let shim = shim_of(&pod.id).as_raw_nonzero();
    assert_eq!(score(shim), score("self") + 1, "it goes before its engine, as runc's shim does");
    let start = |score: i64| -> Container<'_> {
        let mut config = pod.script("exec sleep 1000");
        resources(&mut config).oom_score_adj = score;
        pod.start(config)
    };
    let cheap = start(700);
    assert_eq!(scores(&pod), ["700", "700"]);
    let dear = start(300);
    assert_eq!(scores(&pod), ["300", "300"]);
    assert_eq!(cheap.output("cat /proc/1/oom_score_adj"), "700");
    dear.stop(0);
    dear.remove();
    assert_eq!(scores(&pod), ["700", "700"]);
    pod.remove();
}
