//! The door for engines that start the shim themselves: containerd and CRI-O.
//!
//! ```text
//! containerd ── runs ─► start ── spawns ─► serve-engine ◄── ttrpc ── containerd
//!                 └ prints the address, ends      └ events ── ttrpc ─► containerd
//! containerd ── runs ─► delete: after an end that the shim did not see through
//! ```
//!
//! Behind the door everything is as for the command line: [`crate::service`] and [`crate::container`].

pub mod caller;
pub mod create;
pub mod delete;
pub mod events;
pub mod flags;
pub mod hooks;
pub mod info;
pub mod logger;
pub mod place;
pub mod pod;
mod pod_config;
pub mod rootfs;
pub mod sandbox;
pub mod start;
pub mod stdio;
mod tell;
pub mod view;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use kata_config::{Artefact, Prefix};

use self::{events::Publisher, view::View};
use crate::service::Service;

/// What a shim needs to serve an engine.
pub struct Engine {
    /// The sandbox and its containers.
    pub service: Arc<Service>,
    /// The host as the engine sees it.
    pub view: View,
    /// Where events go.
    pub events: Publisher,
    /// Directory with files for all containers, of a sandbox that was made by the Sandbox service.
    files: OnceLock<PathBuf>,
    /// Host path of `kata-monitor`.
    monitor: PathBuf,
}

impl Engine {
    /// An engine's door to `service`.
    pub fn new(service: Arc<Service>, view: View, events: Publisher) -> anyhow::Result<Arc<Self>> {
        let monitor = Prefix::of_this_program()?.find(Artefact::Monitor)?;
        Ok(Arc::new(Self { service, view, events, files: OnceLock::new(), monitor }))
    }

    /// The containers of this sandbox get the files in this directory.
    fn keep_files(&self, directory: PathBuf) {
        // A sandbox is made once; a second try at it finds the same directory.
        self.files.get_or_init(|| directory);
    }
}
