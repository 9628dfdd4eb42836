//! Safe wrappers over the system calls that neither `std` nor `rustix` offers safely.
//!
//! The only crate with `unsafe`. Each module is one noun; each `unsafe` block proves its invariant.
#![allow(unsafe_code)]

pub mod bpf;
pub mod causes;
pub mod descriptor;
pub mod entropy;
pub mod fork;
#[cfg(feature = "guest-memory")]
pub mod guest_memory;
#[cfg(target_env = "gnu")]
pub mod heap;
pub mod inherit;
pub mod jail;
pub mod loop_device;
pub mod mount_attr;
pub mod mount_table;
pub mod network;
pub mod proc_files;
pub mod removal;
pub mod replacement;
pub mod scheduling;
pub mod scm;
pub mod signal_number;
pub mod signals;
pub mod spawn;
pub mod syscall_filter;
pub mod tap;
pub mod transparent;
pub mod tsc;
pub mod user_namespace;
pub mod vsock;
#[cfg(feature = "tokio")]
pub mod watch;
