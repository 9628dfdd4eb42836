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
mod files;
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
    io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use kata_config::{Artefact, Prefix};

use self::{
    events::Publisher,
    files::{Detached, Files},
    view::HostView,
};
use crate::service::Service;

/// What a shim needs to serve an engine.
pub struct Engine {
    /// The sandbox and its containers.
    pub service: Arc<Service>,
    /// The host as the engine sees it.
    pub view: HostView,
    /// Where events go.
    pub events: Publisher,
    /// Files for all containers, of a sandbox that was made by the Sandbox service.
    files: OnceLock<Files>,
    /// Host path of `kata-monitor`.
    monitor: PathBuf,
}

impl Engine {
    /// An engine's door to `service`.
    pub fn new(
        service: Arc<Service>,
        view: HostView,
        events: Publisher,
    ) -> anyhow::Result<Arc<Self>> {
        let monitor = Prefix::of_this_program()?.find(Artefact::Monitor)?;
        Ok(Arc::new(Self { service, view, events, files: OnceLock::new(), monitor }))
    }

    /// Makes a place for files that the containers of this sandbox get; a second try at the sandbox finds the same.
    fn make_files(&self, directory: PathBuf) -> io::Result<Detached> {
        let files = match self.files.get() {
            Some(files) => files,
            None => {
                let made = Files::mount(directory)?;
                self.files.get_or_init(|| made)
            }
        };
        files.clone_mount()
    }

    /// Takes everything away that the door itself has in the sandbox's directory.
    pub fn close(&self) -> io::Result<()> {
        self.files.get().map_or(Ok(()), Files::unmount)
    }
}
