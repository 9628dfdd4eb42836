//! The hooks on the host in the life of a container: those of its creation, and what is owed to it afterwards.

use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    Hook, HookError, Hooks, Kind, State, Status,
    place::{Container, Place, PlaceError, run_in},
    run_all, run_each,
};

/// The hooks of a container that is being created.
#[derive(Debug, Clone)]
pub struct Creating {
    /// All of its hooks.
    pub hooks: Hooks,
    /// With the pid of what stands for it.
    pub state: State,
    /// Host path of its root.
    pub rootfs: PathBuf,
}

impl Creating {
    /// Runs them all, and then what looks at the root as they have left it.
    ///
    /// # Errors
    /// The first hook that fails, or what looking at the root fails of.
    pub fn run<T, E>(
        &self,
        network: Option<BorrowedFd<'_>>,
        look: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<T, E>
    where
        T: Send,
        E: From<HookError> + From<PlaceError> + Send,
    {
        let Hooks { prestart, create_runtime, create_container, .. } = &self.hooks;
        if !prestart.is_empty() || !create_runtime.is_empty() {
            let bundle = Path::new(&self.state.bundle);
            run_in(Place { directory: bundle, container: None }, || {
                run_all(Kind::Prestart, prestart, &self.state)?;
                run_all(Kind::CreateRuntime, create_runtime, &self.state)
            })??;
        }
        if create_container.is_empty() {
            return look();
        }
        let container = Some(Container { network });
        run_in(Place { directory: &self.rootfs, container }, || {
            run_all(Kind::CreateContainer, create_container, &self.state)?;
            look()
        })?
    }
}

/// What is still to be run in the life of a container, to be kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owed {
    state: State,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

impl Owed {
    /// What these hooks ask for; none when that is nothing.
    pub fn of(hooks: &Hooks, state: State) -> Option<Self> {
        let Hooks { poststart, poststop, .. } = hooks;
        if poststart.is_empty() && poststop.is_empty() {
            return None;
        }
        let state = State { pid: None, ..state };
        Some(Self { state, poststart: poststart.clone(), poststop: poststop.clone() })
    }

    /// True when they must not be forgotten even if creation stops half way.
    pub fn survives_creation(&self) -> bool {
        !self.poststop.is_empty()
    }

    /// Runs what follows a start; returns what is to be warned of.
    pub fn poststart(&self, pid: u32) -> Vec<HookError> {
        let state = State { status: Status::Running, pid: Some(pid), ..self.state.clone() };
        self.run(Kind::Poststart, &self.poststart, &state)
    }

    /// Runs what follows the end of everything; returns what is to be warned of.
    pub fn poststop(&self) -> Vec<HookError> {
        let state = State { status: Status::Stopped, ..self.state.clone() };
        self.run(Kind::Poststop, &self.poststop, &state)
    }

    fn run(&self, kind: Kind, hooks: &[Hook], state: &State) -> Vec<HookError> {
        if hooks.is_empty() {
            return Vec::new();
        }
        let run = || run_each(kind, hooks, state);
        let place = |directory| Place { directory, container: None };
        // An engine may have taken its bundle away by now.
        run_in(place(Path::new(&self.state.bundle)), run)
            .or_else(|_| run_in(place(Path::new("/")), run))
            .unwrap_or_else(|_| run())
    }
}
