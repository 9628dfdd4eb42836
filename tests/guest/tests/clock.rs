//! The guest's wall clock is the host's within 100 ms, whatever has been done to the VM.
//!
//! Not tested here is a step of the host's clock: it would be a step for everything else on this machine too.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kata_guest_tests::{Bundle, Container, HostProcess, Kata, debian};
use rustix::{
    process::Signal,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

/// Seconds.
const TOLERANCE: f64 = 0.1;

/// Says what time it is whenever it is asked.
const CLOCK: &str = "
import sys, time
for line in sys.stdin:
    print(line.strip(), time.time(), flush=True)
";

/// A container with a clock in it.
fn with_clock(test: impl FnOnce(&Container<'_>)) {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let bundle = Bundle::new(&kata, root, &["python3", "-c", CLOCK]);
    test(&Container::started(&kata, &bundle, "clock"));
}

/// Asserts that the guest's clock is the host's. Of some questions the one that was answered soonest counts: between
/// question and answer the guest's time has to lie, up to the tolerance.
fn assert_right(container: &Container<'_>, when: &str) {
    let ask = |round: u32| {
        let question = format!("{} {round}", when.replace(' ', "-")).replace(' ', "-");
        let before = now();
        container.write(format!("{question}\n").as_bytes());
        let is_answer = |line: &str| line.starts_with(&format!("{question} "));
        let text = container.stdout.until(&question, |text| {
            text.split_inclusive('\n').any(|line| is_answer(line) && line.ends_with('\n'))
        });
        let after = now();
        let answer = text.lines().find(|line| is_answer(line)).unwrap();
        let guest: f64 = answer.rsplit_once(' ').unwrap().1.parse().unwrap();
        (before, guest, after)
    };
    let width = |answer: &(f64, f64, f64)| answer.2 - answer.0;
    let answers = (0..10).map(ask);
    let (before, guest, after) =
        answers.min_by(|one, other| width(one).total_cmp(&width(other))).unwrap();
    assert!(
        guest >= before - TOLERANCE && guest <= after + TOLERANCE,
        "{when}: the guest's clock is {:+.3} s from the question, {:+.3} s from the answer",
        guest - before,
        guest - after
    );
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Lets time go by; that is what these tests are about.
fn let_pass(time: Duration) {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let spec = Itimerspec { it_interval: zero, it_value: Timespec::try_from(time).unwrap() };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec).unwrap();
    rustix::io::read(&timer, &mut [0_u8; 8]).unwrap();
}

#[test]
fn the_clock_is_right_from_the_first_process() {
    with_clock(|container| assert_right(container, "at start"));
}

#[test]
fn the_clock_is_right_after_work() {
    with_clock(|container| {
        let busy = "import time\nend = time.monotonic() + 5\nwhile time.monotonic() < end: pass";
        let done = container.exec(&["python3", "-c", busy], b"");
        assert_eq!(done.code, 0, "{}", done.stderr());
        assert_right(container, "after work");
    });
}

#[test]
fn the_clock_is_right_after_the_vmm_was_stopped() {
    with_clock(|container| {
        assert_right(container, "before");
        container.signal_host(HostProcess::Vmm, Signal::STOP);
        let_pass(Duration::from_secs(3));
        container.signal_host(HostProcess::Vmm, Signal::CONT);
        assert_right(container, "after");
    });
}

#[test]
fn the_clock_is_right_after_pause_and_resume() {
    with_clock(|container| {
        assert_right(container, "before");
        container.must("pause");
        let_pass(Duration::from_secs(3));
        container.must("resume");
        assert_right(container, "after");
    });
}
