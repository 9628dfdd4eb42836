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
    path::PathBuf,
};

use kata_engine_api::record::HOOKS_FILE;
use kata_hooks::{
    HookError, State, Status,
    life::{Creating, Owed},
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    bundle::Bundle, failure::Failure, id::ContainerId, journal::Journal, sandbox_dir::SandboxDir,
};

/// The hooks of a bundle's container that is being created; `pid` stands for it.
pub fn creating(bundle: &Bundle, id: &ContainerId, pid: u32) -> Creating {
    Creating {
        hooks: bundle.hooks.clone(),
        state: State { pid: Some(pid), ..state(bundle, id) },
        rootfs: bundle.spec.rootfs.clone(),
    }
}

/// What a bundle asks for after the creation; none when that is nothing.
pub fn owed(bundle: &Bundle, id: &ContainerId) -> Option<Owed> {
    Owed::of(&bundle.hooks, state(bundle, id))
}

fn state(bundle: &Bundle, id: &ContainerId) -> State {
    State {
        oci_version: kata_spec::VERSION.to_owned(),
        id: id.to_string(),
        status: Status::Creating,
        pid: None,
        bundle: bundle.spec.bundle.display().to_string(),
        annotations: bundle.spec.annotations.clone(),
    }
}

/// Writes `hooks.json`.
pub fn keep(owed: &Owed, dir: &SandboxDir) -> Result<(), Failure> {
    let path = path(dir);
    let failed = || Failure::host(format!("write {}", path.display()));
    let text = serde_json::to_vec(owed).map_err(|error| failed()(error.into()))?;
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path)).map_err(failed())
}

/// Reads the file; none when nothing is owed.
pub fn read(dir: &SandboxDir) -> Result<Option<Owed>, Failure> {
    open(dir)?.map(|file| parse(dir, file)).transpose()
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

    use super::{Claim, keep, owed, read, warn};
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
        let owed = owed(&bundle(&scratch), &id).unwrap();
        let root = Root::new(&scratch.path().join("state")).unwrap();
        let dir = root.create(&id).unwrap();
        assert!(Claim::wait_for(&dir).unwrap().is_none());
        keep(&owed, &dir).unwrap();
        let claim = Claim::wait_for(&dir).unwrap().unwrap();
        assert_eq!(claim.owed, owed);
        assert!(read(&dir).unwrap().is_some());
        dir.discard();
        warn(&Journal::default(), claim.owed.poststop());
        let told = fs::read_to_string(scratch.path().join("stopped")).unwrap();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["status"], told.get("pid")), (&json!("stopped"), None));
        assert!(Claim::wait_for(&dir).unwrap().is_none());
    }
}
