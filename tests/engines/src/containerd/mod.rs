//! containerd, spoken to as `ctr` and as a kubelet.

pub mod cni;
mod cri;
mod daemon;
mod grpc;
mod leftovers;
mod pod;
mod release;
mod sandbox;
mod stream;
mod task;
mod volume;

pub use cri::Cri;
pub use daemon::{BUSYBOX, Containerd, Handler, KATA, KATA_SANDBOXER, RUNC};
pub use grpc::Status;
pub use leftovers::{nothing_left, processes, shim_of};
pub use pod::{Container, Pod, config, resources, security};
pub use release::Release;
pub use sandbox::{Sandbox, Usage};
pub use stream::{Channel, Stream};
pub use task::{Task, deadline};
pub use volume::{Volume, bind};

/// CRI's messages, generated from `proto/`.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod runtime {
    include!(concat!(env!("OUT_DIR"), "/cri.rs"));
}
