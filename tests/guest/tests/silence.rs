//! A shim that is stopped answers nobody: nobody waits for it in vain, and it can be got rid of.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use kata_guest_tests::{Bundle, Container, HostProcess, Kata, busybox};
use rustix::process::Signal;

/// Whoever is bounded at all is back by then, on a loaded machine, too.
const BOUNDED: Duration = Duration::from_secs(45);

fn with_stopped_shim(claim: impl Fn(&Container<'_>)) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "silence");
    container.signal_host(HostProcess::Shim, Signal::STOP);
    claim(&container);
}

#[test]
fn state_tells_what_is_recorded_and_that_nobody_answers() {
    with_stopped_shim(|container| {
        let state = container.state();
        assert_eq!(state["status"], "running");
        assert_eq!(state["pid"], container.pid);
        assert_eq!(state["kata"]["unresponsive"], true);
        container.signal_host(HostProcess::Shim, Signal::CONT);
        assert_eq!(container.state()["kata"].get("unresponsive"), None);
    });
}

#[test]
fn every_call_comes_back_and_says_so() {
    with_stopped_shim(|container| {
        for call in [&["kill"][..], &["pause"], &["ps"], &["delete"]] {
            let done = container.call(call);
            assert_eq!(done.code, 1, "{call:?}");
            done.assert_one_line(&["does not answer"]);
            assert!(done.took < BOUNDED, "{call:?} took {:?}", done.took);
        }
        let done = container.exec(&["true"], b"");
        assert_eq!(done.code, 255);
        assert!(done.stderr().contains("does not answer"), "{}", done.stderr());
        assert!(done.took < BOUNDED, "exec took {:?}", done.took);
    });
}

#[test]
fn force_deletes_it_and_leaves_nothing() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    let container = Container::started(&kata, &bundle, "silence-deleted");
    let traces = container.traces();
    container.signal_host(HostProcess::Shim, Signal::STOP);
    let deleted = container.call(&["delete", "--force"]);
    assert_eq!(deleted.code, 0, "{}", deleted.stderr());
    assert!(deleted.took < BOUNDED, "{:?}", deleted.took);
    traces.assert_gone();
}
