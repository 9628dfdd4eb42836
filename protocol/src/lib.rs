//! What host and guest say to each other: generated messages, the two hellos, and the version.
//!
//! Everything here is read from a peer that may be hostile; each type is parsed once, with its bounds, by [`hello`] and [`resolver`]; what
//! generated code decodes is within [`frame`]'s.

pub mod frame;
pub mod hello;
pub mod reserve;
pub mod resolver;
pub mod sysctl;
pub mod weight;

/// Generated from `proto/agent.proto`.
#[allow(warnings, clippy::all, clippy::restriction)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The `Agent` service, generated from `proto/agent.proto`.
#[allow(warnings, clippy::all, clippy::restriction)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// Version of the protocol; agent and shim must agree on it.
pub const PROTOCOL_VERSION: u32 = 3;

/// Host port of the agent's own connection.
pub const AGENT_PORT: u32 = 1024;

/// Host port of all other streams.
pub const STREAM_PORT: u32 = 1025;

/// virtio-fs tag and guest mount point of the container roots.
pub const ROOTS: (&str, &str) = ("roots", "/run/kata/roots");

/// virtio-fs tag and guest mount point of volumes.
pub const VOLUMES: (&str, &str) = ("volumes", "/run/kata/volumes");

/// Guest path of volumes that the guest holds copies of, by number.
pub const COPIES: &str = "/run/kata/copies";

/// Guest path of volumes in the guest's memory, by number.
pub const MEMORY: &str = "/run/kata/memory";

/// Guest path of the pod's own pid namespace, once it is held.
pub const POD_PIDS: &str = "/run/kata/pids";

/// Name of the kernel parameter that carries the boot nonce in hex.
pub const NONCE_PARAMETER: &str = "kata.nonce";
