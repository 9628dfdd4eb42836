//! How the tests of engines start one that is theirs alone, and compare what it does with Kata and with runc.
//!
//! Each engine gets state, image store, sockets and a network namespace of its own, so that what it does to networks and
//! firewalls stays there. `cargo xtask test` sets the environment of the guest tests, and installs the engines.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod claims;
mod compare;
pub mod containerd;
mod docker;
mod engine;
mod life;
mod netns;
pub mod options;
mod podman;
mod scratch;

pub use compare::{Cases, normal};
pub use docker::{docker, docker_26, docker_26_with_shim};
pub use engine::{Engine, Kind, Runtime};
pub use life::Life;
pub use netns::Netns;
pub use podman::{podman, podman_with_netavark};
