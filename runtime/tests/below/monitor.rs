//! A monitor that passes signals on and ends as it is told.

use std::{fs::File, io::Write, process::ExitCode};

use kata_engine_api::control::{ToMonitor, ToShim};
use kata_sys::{inherit, scm, signals::SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

const SHIM_LOST: u8 = 137;
const PIPE: i32 = 13;
const CHLD: i32 = 17;

pub fn main() -> ExitCode {
    let control = inherit::take(3).unwrap();
    let signals =
        SignalFd::block((1..=64).filter(|signal| ![PIPE, CHLD].contains(signal))).unwrap();
    File::from(inherit::take(5).unwrap()).write_all(b"ok\n").unwrap();
    loop {
        let mut fds = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&control, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let told = !fds[1].revents().is_empty();
        while let Some(received) = signals.next().unwrap() {
            let message = serde_json::to_vec(&ToShim::Signal(received.signal)).unwrap();
            scm::send(&control, &message, &[]).unwrap();
        }
        if told {
            let packet = scm::receive(&control).unwrap();
            return match serde_json::from_slice(&packet.bytes) {
                Ok(ToMonitor::End(end)) => ExitCode::from(end.code),
                _ => ExitCode::from(SHIM_LOST),
            };
        }
    }
}
