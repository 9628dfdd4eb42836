//! containerd's own messages and services, generated from `proto/`.
//!
//! Messages are in [`task`] and [`task_events`], with what they refer to in [`mount`] and [`process`]; the shim serves
//! [`task_ttrpc::Task`] and sends its events through [`forward_ttrpc::EventsClient`].
#![allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]

pub use protobuf::well_known_types::{any, empty, timestamp};

/// `containerd.types`.
pub mod mount {
    include!(concat!(env!("OUT_DIR"), "/mount.rs"));
}

/// `containerd.v1.types`.
pub mod process {
    include!(concat!(env!("OUT_DIR"), "/process.rs"));
}

/// Messages of `containerd.task.v2`.
pub mod task {
    include!(concat!(env!("OUT_DIR"), "/task.rs"));
}

/// The `Task` service: server trait, `create_task`, `TaskClient`.
pub mod task_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/task_ttrpc.rs"));
}

/// `containerd.events`.
pub mod task_events {
    include!(concat!(env!("OUT_DIR"), "/task_events.rs"));
}

/// Messages of `containerd.services.events.ttrpc.v1`.
pub mod forward {
    include!(concat!(env!("OUT_DIR"), "/forward.rs"));
}

/// The `Events` service.
pub mod forward_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/forward_ttrpc.rs"));
}

/// `io.containerd.cgroups.v1`.
pub mod cgroups_v1 {
    include!(concat!(env!("OUT_DIR"), "/cgroups_v1.rs"));
}

/// `io.containerd.cgroups.v2`.
pub mod cgroups_v2 {
    include!(concat!(env!("OUT_DIR"), "/cgroups_v2.rs"));
}

/// `containerd.runtime.bootstrap.v1`.
pub mod bootstrap {
    include!(concat!(env!("OUT_DIR"), "/bootstrap.rs"));
}

/// `containerd.types`, of `-info`.
pub mod introspection {
    include!(concat!(env!("OUT_DIR"), "/introspection.rs"));
}

/// `runtimeoptions.v1`.
pub mod runtimeoptions {
    include!(concat!(env!("OUT_DIR"), "/runtimeoptions.rs"));
}

/// Messages of `containerd.runtime.sandbox.v1`.
pub mod sandbox {
    include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
}

/// The `Sandbox` service.
pub mod sandbox_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/sandbox_ttrpc.rs"));
}

/// `runtime.v1`: what a sandbox is made of.
pub mod pod {
    include!(concat!(env!("OUT_DIR"), "/pod.rs"));
}
