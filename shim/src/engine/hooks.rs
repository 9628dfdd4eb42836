//! Hooks on the host, in the engine's view of it.
//!
//! ```text
//! Create: hooks.json ─► prestart ─► createRuntime ─► createContainer ─► root and volumes are taken
//! Start:  … ─► poststart            Delete, or `delete`: … ─► poststop
//! ```
//!
//! Those of the creation run where the root is mounted, in a copy of the engine's mounts that ends with the request: what
//! they mount there, the container gets and the host never sees.

use std::{fs, io, path::Path};

use kata_engine_api::{handover::FailureKind, record::HOOKS_FILE};
use kata_hooks::{
    HookError, Hooks, State, Status,
    life::{Creating, Owed},
    place::PlaceError,
};
use kata_spec::Checked;
use kata_sys::{causes::chain, replacement::replace};
use rustix::fs::{CWD, Mode};
use serde::Deserialize;

use super::{
    Engine,
    place::CONTAINERS,
    view::{Mounts, Room},
};
use crate::failure::Refusal;

impl From<HookError> for Refusal {
    fn from(error: HookError) -> Self {
        Self::internal(&error)
    }
}

impl From<PlaceError> for Refusal {
    fn from(error: PlaceError) -> Self {
        Self::internal(&error)
    }
}

/// The hooks of a configuration.
pub fn of(spec: &Checked) -> Result<Hooks, Refusal> {
    let hooks: Option<Hooks> = Option::deserialize(&spec.hooks).map_err(|error| {
        let message = format!("hooks: {}", chain(&error));
        Refusal::new(FailureKind::InvalidArgument, message)
    })?;
    Ok(hooks.unwrap_or_default())
}

/// Whether some are to run before root and volumes are looked at.
pub fn precede_trees(hooks: &Hooks) -> bool {
    let Hooks { prestart, create_runtime, create_container, .. } = hooks;
    [prestart, create_runtime, create_container].iter().any(|hooks| !hooks.is_empty())
}

/// Those of a container that is being created; `pid` stands for it.
pub fn creating(hooks: Hooks, spec: &Checked, (id, pid): (&str, u32)) -> Creating {
    let state = State {
        oci_version: kata_spec::VERSION.to_owned(),
        id: id.to_owned(),
        status: Status::Creating,
        pid: Some(pid),
        bundle: spec.bundle.display().to_string(),
        annotations: spec.annotations.clone(),
    };
    Creating { hooks, state, rootfs: spec.rootfs.clone() }
}

/// Reads what is owed to a container with this directory; none when that is nothing.
pub fn read(directory: &Path) -> Option<Owed> {
    let path = directory.join(HOOKS_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "read what hooks are owed");
            return None;
        }
    };
    let owed = serde_json::from_slice(&text);
    owed.inspect_err(|error| tracing::warn!(%error, path = %path.display(), "read what is owed"))
        .ok()
}

/// Runs what follows the end of everything.
pub fn poststop(owed: &Owed) {
    warn(owed.poststop());
}

fn warn(errors: Vec<HookError>) {
    for error in errors {
        tracing::warn!("{}", chain(&error));
    }
}

impl Engine {
    /// Leaves on disk what is owed after the creation, before any hook has run.
    pub fn keep_hooks(&self, creating: &Creating) -> Result<(), Refusal> {
        let Some(owed) = Owed::of(&creating.hooks, creating.state.clone()) else { return Ok(()) };
        let directory = self.service.directory().join(CONTAINERS).join(&creating.state.id);
        let path = directory.join(HOOKS_FILE);
        let text = serde_json::to_vec(&owed).map_err(|e| Refusal::internal(&e))?;
        replace(CWD, &path, Mode::RUSR | Mode::WUSR, &text).map_err(|error| {
            let message = format!("write {}: {error}", path.display());
            Refusal::new(FailureKind::Internal, message)
        })
    }

    /// Runs what follows a creation that has failed.
    pub async fn undo_hooks(&self, id: &str, room: &Room) {
        let Some(owed) = read(&self.service.directory().join(CONTAINERS).join(id)) else { return };
        if let Err(error) = room.run(move || poststop(&owed)).await {
            tracing::warn!(%error, "run hooks");
        }
    }

    /// Runs what follows a start. The container runs already: what fails of it is a warning.
    pub async fn poststart(&self, id: &str, pid: u32) {
        let Some(owed) = self.owed(id) else { return };
        self.look(move || warn(owed.poststart(pid))).await;
    }

    /// What is owed to a container.
    pub fn owed(&self, id: &str) -> Option<Owed> {
        read(&self.service.directory().join(CONTAINERS).join(id))
    }

    /// Runs what follows the end of everything.
    pub async fn poststop(&self, owed: Option<Owed>) {
        let Some(owed) = owed else { return };
        self.look(move || poststop(&owed)).await;
    }

    async fn look(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(error) = self.view.run(Mounts::Engine, work).await {
            tracing::warn!(%error, "run hooks");
        }
    }
}
