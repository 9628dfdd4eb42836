//! Many containers: side by side, and one after the other.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use kata_guest_tests::{Kata, Running, busybox, meminfo_kib, repetitions};

/// MiB by which available memory varies on a host on which nothing is lost.
const NOISE_MIB: u64 = 128;

/// Serial, so that they don't load each other: the one test of this program has two halves.
#[test]
fn many_containers_work_and_the_last_is_as_good_as_the_first() {
    let (Some(kata), Some(_)) = (Kata::installed(), busybox()) else { return };
    side_by_side(&kata);
    one_after_the_other(&kata);
}

fn side_by_side(kata: &Kata) {
    let roots: Vec<_> = (0..8).map(|_| busybox().unwrap()).collect();
    let script = "echo $HOSTNAME >/name; dd if=/dev/zero bs=65536 count=16 2>/dev/null; cat /name";
    let start = |number: usize| {
        let (root, id) = (roots[number].path(), format!("eight-{number}"));
        let host = format!("host-{number}");
        let run = ["run", "--rootfs", root, "--hostname", &host, &id, "--", "sh", "-c"];
        Running::start(kata.command(&[&run[..], &[script]].concat()))
    };
    let running: Vec<_> = (0..roots.len()).map(start).collect();
    for (number, running) in running.into_iter().enumerate() {
        let output = running.finish();
        assert_eq!(output.code, 0, "{number}: {}", output.stderr());
        let (zeros, _) = output.stdout.split_at(1 << 20);
        assert!(zeros.iter().all(|byte| *byte == 0), "{number}");
    }
    assert_eq!(kata.call(&["list", "--quiet"]).stdout(), "");
}

fn one_after_the_other(kata: &Kata) {
    let root = busybox().unwrap();
    let mut rounds = Vec::new();
    // The first one of all fills the host's caches.
    for _ in 0..=repetitions(50) {
        let started = Instant::now();
        let output = kata.shell(&root, "echo done");
        assert_eq!((output.code, output.stdout().as_str()), (0, "done\n"), "{}", output.stderr());
        rounds.push((started.elapsed(), available_mib()));
    }
    let tenth = rounds.len().div_ceil(10).max(2);
    let (first, last) = (&rounds[1..=tenth], &rounds[rounds.len() - tenth..]);
    let (early, late) = (quickest(first), quickest(last));
    assert!(late <= early.mul_f64(1.5), "from {early:?} to {late:?}: {rounds:?}");
    let (before, after) = (most(first), most(last));
    assert!(before <= after + NOISE_MIB, "from {before} to {after} MiB: {rounds:?}");
}

/// The one that other users of the host held up least.
fn quickest(rounds: &[(Duration, u64)]) -> Duration {
    rounds.iter().map(|(took, _)| *took).min().unwrap()
}

fn most(rounds: &[(Duration, u64)]) -> u64 {
    rounds.iter().map(|(_, available)| *available).max().unwrap()
}

fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    meminfo_kib(&text, "MemAvailable") / 1024
}
