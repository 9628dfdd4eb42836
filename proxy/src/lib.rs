//! The devices that a guest talks to: vsock and virtio-fs, in one jailed process a sandbox.
//!
//! ```text
//!           control: new connections, pressure, ready
//!   shim ◄───────────────────────────────────────────── kata-proxy ──── roots/, volumes/ (all it can see)
//!     ▲                                                    │  │  │
//!     └────────── one Unix stream a vsock connection ──────┘  │  │ vhost-user: one socket a device,
//!                                                          VMM ◄─┘ guest memory shared
//! ```
//!
//! Everything that comes over vhost-user is hostile: the guest writes the queues, and a guest that has taken over the VMM
//! writes the messages too. So the process is jailed before it looks at either ([`jail`]), every bound is its own
//! ([`vsock::muxer`]), and whatever goes wrong beyond repair ends the process, which ends the sandbox.

pub mod control;
pub mod fs;
pub mod jail;
pub mod serve;
pub mod vring;
pub mod vsock;

/// Runs a test in a process of its own, where nothing else opens anything; `name` is its path. Its panics are the test's.
#[cfg(test)]
fn alone(name: &str, inside: impl FnOnce()) {
    use std::os::fd::AsFd;

    use kata_sys::spawn::{Exit, Spawn};

    if std::env::var_os("KATA_PROXY_TEST").is_some() {
        return inside();
    }
    let name = std::ffi::CString::new(name).unwrap();
    let arguments = vec![c"test".into(), c"--exact".into(), name, c"--nocapture".into()];
    let environment = vec![c"KATA_PROXY_TEST=1".into()];
    let null = std::fs::File::open("/dev/null").unwrap();
    let output = rustix::stdio::stderr();
    let fds = vec![null.as_fd(), output, output];
    let itself = Spawn { arguments, environment, fds, ..Spawn::new(c"/proc/self/exe".into()) };
    assert_eq!(itself.start().unwrap().wait().unwrap(), Exit::Code(0));
}
