//! A guest that hangs answers nobody: whoever asks hears which of all it is that hangs, soon, and what was given up does not run later.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use kata_guest_tests::{Bundle, Container, HostProcess, Kata, busybox};
use rustix::process::Signal;

/// 30 s until an exec is given up, and as much again for a loaded machine; it was 120 s.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_call_says_that_it_is_the_guest_and_an_exec_given_up_never_runs() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "hung-guest");
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    for call in [&["ps"][..], &["update", "--pids-limit", "99"]] {
        let done = container.call(call);
        assert_eq!(done.code, 1, "{call:?}");
        done.assert_one_line(&["the guest does not answer", "kata.vmmPid"]);
    }
    let done = container.exec(&["sleep", "2000"], b"");
    assert_eq!(done.code, 255);
    for words in ["the guest did not answer exec_process within 30 s", "kata.vmmPid"] {
        assert!(done.stderr().contains(words), "{}", done.stderr());
    }
    assert!(done.took < SOON, "{:?}", done.took);
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    // Asked for later, so made later than what was given up.
    assert_eq!(container.exec(&["true"], b"").code, 0);
    let deadline = Instant::now() + SOON;
    let runs_on = || {
        let listed = container.call(&["ps"]);
        assert_eq!(listed.code, 0, "{}", listed.stderr());
        String::from_utf8_lossy(&listed.stdout).contains("sleep 2000")
    };
    while runs_on() {
        assert!(Instant::now() < deadline, "what was given up runs on");
    }
    a_pause_given_up_is_taken_back(&container);
}

fn a_pause_given_up_is_taken_back(container: &Container) {
    container.signal_host(HostProcess::Vmm, Signal::STOP);
    let done = container.call(&["pause"]);
    assert_eq!(done.code, 1);
    done.assert_one_line(&["the guest did not answer pause_container within 30 s", "kata.vmmPid"]);
    container.signal_host(HostProcess::Vmm, Signal::CONT);
    // Refused in a paused container, and held up in a frozen one.
    assert_eq!(container.exec(&["true"], b"").code, 0);
    for verb in ["pause", "resume"] {
        assert_eq!(container.call(&[verb]).code, 0, "{verb}");
    }
}
