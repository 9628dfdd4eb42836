use std::{os::unix::net::UnixDatagram, sync::Arc};

use kata_engine_api::{handover::TerminalSize, record::Cause};
use kata_protocol::agent::ProcessEnd;
use kata_sandbox::{guest::Switchboard, loss::Loss};

use super::{Outcome, Process};
use crate::monitor::Monitor;

#[test]
fn a_signal_is_128_and_more_and_oom_has_a_cause_of_its_own() {
    let killed = ProcessEnd { signal: 9, ..Default::default() };
    let outcome = Outcome::of_agent(&killed);
    assert_eq!((outcome.end.code, outcome.end.cause), (137, Cause::Signaled));
    let oom = ProcessEnd { signal: 9, oom_killed: true, ..Default::default() };
    assert_eq!(Outcome::of_agent(&oom).end.cause, Cause::Oom);
    let guest = ProcessEnd { signal: 9, guest_oom: true, ..Default::default() };
    assert_eq!(Outcome::of_agent(&guest).end.cause, Cause::GuestOom);
    let asked = ProcessEnd { signal: 15, oom_killed: true, ..Default::default() };
    assert_eq!(Outcome::of_agent(&asked).end.cause, Cause::Signaled);
}

#[tokio::test]
async fn a_size_that_came_after_the_request_is_owed() {
    let size = |rows| TerminalSize { rows, columns: 80 };
    let (ours, _) = UnixDatagram::pair().unwrap();
    let monitor = Monitor::new(ours.into(), 1).unwrap();
    let process = Arc::new(Process::new("c", "", monitor, Some(Some(size(24)))));
    let (board, _agent) = Switchboard::new([0; 32]);
    process.expect_streams(&board, [0; 16]);
    assert_eq!(process.changed_size(), None);
    process.set_size(size(30));
    assert_eq!(process.changed_size(), Some(size(30)));
}

#[test]
fn no_loss_is_ever_exit_code_0() {
    let text = String::new;
    for loss in [
        Loss::GuestPanic(text()),
        Loss::Agent(text()),
        Loss::GuestOom(text()),
        Loss::GuestReset(text()),
        Loss::GuestStuck(text()),
        Loss::GuestSilent(text()),
        Loss::Vmm(text()),
        Loss::VmmCrash(text()),
        Loss::HostOom(text()),
        Loss::Proxy(text()),
        Loss::ProxyCrash(text()),
        Loss::Stopped,
    ] {
        assert_ne!(Outcome::of_loss(&loss).end.code, 0);
    }
}
