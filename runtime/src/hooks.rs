//! Hooks on the host: those of `create`, and what is owed to `start` and `delete`.
//!
//! ```text
//! create: hooks.json ─► prestart ─► createRuntime ─► createContainer ─► root and volumes are taken
//! start:  … ─► poststart            delete: lock hooks.json ─► … ─► poststop
//! ```
//!
//! `hooks.json` is there before the first hook runs: from then on somebody has to run `poststop`, whoever is killed.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use kata_engine_api::record::HOOKS_FILE;
use kata_hooks::{
    Hook, HookError, Hooks, Kind, State, Status,
    place::{Container, Place, run_in},
    run_all, run_each,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    bundle::Bundle, failure::Failure, id::ContainerId, journal::Journal, sandbox_dir::SandboxDir,
};

/// The hooks of a container that is being created.
pub struct Creating<'a> {
    hooks: &'a Hooks,
    state: State,
    bundle: &'a Path,
    rootfs: &'a Path,
}

impl<'a> Creating<'a> {
    /// Those of a bundle; `pid` stands for the container.
    pub fn of(bundle: &'a Bundle, id: &ContainerId, pid: u32) -> Self {
        let state = State { pid: Some(pid), ..state(bundle, id) };
        Self {
            hooks: &bundle.hooks,
            state,
            bundle: &bundle.spec.bundle,
            rootfs: &bundle.spec.rootfs,
        }
    }

    /// Runs them all, and then what looks at the root as they have left it.
    pub fn run<T: Send>(
        &self,
        network: Option<BorrowedFd<'_>>,
        look: impl FnOnce() -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let Hooks { prestart, create_runtime, create_container, .. } = self.hooks;
        if !prestart.is_empty() || !create_runtime.is_empty() {
            run_in(Place { directory: self.bundle, container: None }, || {
                run_all(Kind::Prestart, prestart, &self.state)?;
                run_all(Kind::CreateRuntime, create_runtime, &self.state)
            })??;
        }
        if create_container.is_empty() {
            return look();
        }
        let container = Some(Container { network });
        run_in(Place { directory: self.rootfs, container }, || {
            run_all(Kind::CreateContainer, create_container, &self.state)?;
            look()
        })?
    }
}

fn state(bundle: &Bundle, id: &ContainerId) -> State {
    State {
        oci_version: bundle.spec.oci_version.clone(),
        id: id.to_string(),
        status: Status::Creating,
        pid: None,
        bundle: bundle.spec.bundle.display().to_string(),
        annotations: bundle.spec.annotations.clone(),
    }
}

/// `hooks.json`: what is still to be run in the life of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owed {
    state: State,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

impl Owed {
    /// What a bundle asks for; none when that is nothing.
    pub fn of(bundle: &Bundle, id: &ContainerId) -> Option<Self> {
        let Hooks { poststart, poststop, .. } = &bundle.hooks;
        if poststart.is_empty() && poststop.is_empty() {
            return None;
        }
        let state = state(bundle, id);
        Some(Self { state, poststart: poststart.clone(), poststop: poststop.clone() })
    }

    /// True when they must not be forgotten even if creation stops half way.
    pub fn survives_creation(&self) -> bool {
        !self.poststop.is_empty()
    }

    /// Writes the file.
    pub fn keep(&self, dir: &SandboxDir) -> Result<(), Failure> {
        let path = path(dir);
        let failed = || Failure::host(format!("write {}", path.display()));
        let text = serde_json::to_vec(self).map_err(|error| failed()(error.into()))?;
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path)).map_err(failed())
    }

    /// Reads the file; none when nothing is owed.
    pub fn read(dir: &SandboxDir) -> Result<Option<Self>, Failure> {
        open(dir)?.map(|file| parse(dir, file)).transpose()
    }

    /// Runs what follows a start; returns what is to be warned of.
    pub fn poststart(&self, pid: u32) -> Vec<HookError> {
        let state = State { status: Status::Running, pid: Some(pid), ..self.state.clone() };
        self.run(Kind::Poststart, &self.poststart, &state)
    }

    /// Runs what follows the end of everything, with a warning for each that fails.
    pub fn poststop(&self, journal: &Journal) {
        let state = State { status: Status::Stopped, ..self.state.clone() };
        warn(journal, self.run(Kind::Poststop, &self.poststop, &state));
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

/// The right to remove a container that has hooks to be run afterwards; nobody else has it meanwhile.
pub struct Claim {
    /// What is owed.
    pub owed: Owed,
    _locked: File,
}

impl Claim {
    /// Waits for whoever has it; none when nothing is owed, or nothing is left by then.
    pub fn wait_for(dir: &SandboxDir) -> Result<Option<Self>, Failure> {
        let Some(file) = open(dir)? else { return Ok(None) };
        flock(&file, FlockOperation::LockExclusive)
            .map_err(Failure::system(format!("lock {}", path(dir).display())))?;
        if dir.is_gone() {
            return Ok(None);
        }
        let locked = file
            .try_clone()
            .map_err(Failure::host(format!("keep hold of {}", path(dir).display())))?;
        Ok(Some(Self { owed: parse(dir, file)?, _locked: locked }))
    }
}

/// Warns of each hook that failed.
pub fn warn(journal: &Journal, errors: Vec<HookError>) {
    for error in errors {
        journal.warn(&Failure::from(error).line());
    }
}

fn path(dir: &SandboxDir) -> PathBuf {
    dir.path.join(HOOKS_FILE)
}

fn open(dir: &SandboxDir) -> Result<Option<File>, Failure> {
    let path = path(dir);
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some).map_err(Failure::host(format!("read {}", path.display()))),
    }
}

fn parse(dir: &SandboxDir, mut file: File) -> Result<Owed, Failure> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(Failure::host(format!("read {}", path(dir).display())))?;
    serde_json::from_slice(&text).map_err(|source| Failure::Record { path: path(dir), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::{Claim, Owed};
    use crate::{bundle::Bundle, journal::Journal, sandbox_dir::Root};

    /// A bundle whose poststop hook writes what it reads into a file.
    fn bundle(scratch: &tempfile::TempDir) -> Bundle {
        let rootfs = scratch.path().join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        let mut spec = kata_spec::default_for(rootfs.to_str().unwrap(), &["sh".into()], false);
        let script = "cat > stopped";
        spec["hooks"] = json!({ "poststop": [
            { "path": "/bin/sh", "args": ["sh", "-c", "exit 7"] },
            { "path": "/bin/sh", "args": ["sh", "-c", script] },
        ]});
        Bundle::made(&spec, scratch.path()).unwrap()
    }

    #[test]
    fn what_is_owed_is_kept_until_it_is_claimed() {
        let scratch = tempfile::tempdir().unwrap();
        let id = "c1".parse().unwrap();
        let owed = Owed::of(&bundle(&scratch), &id).unwrap();
        let root = Root::new(&scratch.path().join("state")).unwrap();
        let dir = root.create(&id).unwrap();
        assert!(Claim::wait_for(&dir).unwrap().is_none());
        owed.keep(&dir).unwrap();
        let claim = Claim::wait_for(&dir).unwrap().unwrap();
        assert_eq!(claim.owed, owed);
        assert!(Owed::read(&dir).unwrap().is_some());
        dir.discard();
        claim.owed.poststop(&Journal::default());
        let told = fs::read_to_string(scratch.path().join("stopped")).unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["status"], told.get("pid")), (&json!("stopped"), None));
        assert!(Claim::wait_for(&dir).unwrap().is_none());
    }
}
