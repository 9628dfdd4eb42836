//! What engines, `kata-runtime`, the shim and the monitor say to each other on one host.

pub mod containerd;
pub mod control;
pub mod dial;
pub mod guest_process;
pub mod handover;
pub mod monitor;
pub mod record;
pub mod timestamp;
pub mod words;
