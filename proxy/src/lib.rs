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

pub mod config;
pub mod control;
pub mod fs;
pub mod jail;
pub mod serve;
pub mod vsock;
