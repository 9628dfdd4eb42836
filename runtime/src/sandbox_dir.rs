//! `ROOT/ID/`: the directory of one sandbox, and the directory of them all.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use kata_engine_api::record::{LOG_FILE, RECORD_FILE, Record};
use kata_sys::descriptor::is_at;
use rustix::fs::{CWD, Mode, OFlags};

use crate::{failure::Failure, id::ContainerId};

/// `--root` when none is given.
pub const DEFAULT_ROOT: &str = "/run/kata";

/// `--root`: where sandboxes have their directories.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// The root as given, made absolute so that no later step depends on the working directory.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        let absolute = std::path::absolute(path);
        absolute
            .map(Self)
            .map_err(Failure::host(format!("use the state directory {}", path.display())))
    }

    /// The directory itself, absolute.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory of a new sandbox; exactly one of many callers with the same id succeeds.
    pub fn create(&self, id: &ContainerId) -> Result<SandboxDir, Failure> {
        let private = |recursive| {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        let path = self.0.join(id.as_str());
        let failed =
            |path: &Path| Failure::host(format!("make the state directory {}", path.display()));
        let made = loop {
            match private(false).create(&path) {
                // Also when the last of the others was just deleted, and the root with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    private(true).create(&self.0).map_err(failed(&self.0))?;
                }
                made => break made,
            }
        };
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
                return Err(Failure::Exists { id: id.to_string(), root: self.0.clone() });
            }
            made => made.map_err(failed(&path))?,
        }
        SandboxDir::at(path)
    }

    /// The directory of a sandbox that exists.
    pub fn open(&self, id: &ContainerId) -> Result<SandboxDir, Failure> {
        match SandboxDir::at(self.0.join(id.as_str())) {
            Err(Failure::Host { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(self.unknown(id))
            }
            opened => opened,
        }
    }

    /// That there is no such sandbox here.
    pub fn unknown(&self, id: &ContainerId) -> Failure {
        Failure::Unknown { id: id.to_string(), root: self.0.clone() }
    }

    /// Takes the default root away when no sandbox is left: a machine is as it was before. One that was named stays.
    pub fn tidy_up(&self) {
        tidy_up(&self.0);
    }

    /// Fails where it is not there, unless nobody has named it: the default one comes with the first sandbox.
    pub fn must_be_there(&self) -> Result<(), Failure> {
        if self.0 == Path::new(DEFAULT_ROOT) {
            return Ok(());
        }
        let found = fs::metadata(&self.0).map(drop);
        found.map_err(Failure::host(format!("read the state directory {}", self.0.display())))
    }

    /// Ids of all sandboxes, sorted. Names that can't be ids are not ours.
    pub fn ids(&self) -> Result<Vec<ContainerId>, Failure> {
        let failed = || Failure::host(format!("read the state directory {}", self.0.display()));
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed())?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            ids.extend(id.filter(|_| is_directory));
        }
        ids.sort();
        Ok(ids)
    }
}

fn tidy_up(root: &Path) {
    if root == Path::new(DEFAULT_ROOT) {
        // Not empty, or gone already: both are fine.
        fs::remove_dir(root).ok();
    }
}

/// The directory of one sandbox, held open: renaming it leads nobody astray.
#[derive(Debug)]
pub struct SandboxDir {
    /// For messages, and for the shim's one-shot commands.
    pub path: PathBuf,
    fd: OwnedFd,
}

impl SandboxDir {
    fn at(path: PathBuf) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(Failure::system(format!("open {}", path.display())))?;
        Ok(Self { path, fd })
    }

    /// Takes it away, with all that is in it; for a sandbox that came to nothing.
    pub fn discard(&self) {
        // Whoever wanted the sandbox is being told of a failure already.
        fs::remove_dir_all(&self.path).ok();
        self.path.parent().map(tidy_up);
    }

    /// What the shim has recorded; none when it did not come that far.
    pub fn record(&self) -> Result<Option<Record>, Failure> {
        let path = self.path.join(RECORD_FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::host(format!("read {}", path.display()))(error)),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| Failure::Record { path, source }),
        }
    }

    /// The last line of the shim's log, for the message about a shim that says nothing more.
    pub fn last_words(&self) -> String {
        let path = self.path.join(LOG_FILE);
        let text = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => line.to_owned(),
            None => format!("nothing in {}", path.display()),
        }
    }

    /// True once the directory is not there any more, or another one is.
    pub fn is_gone(&self) -> bool {
        !is_at(&self.fd, CWD, &self.path)
    }
}

impl AsFd for SandboxDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{DEFAULT_ROOT, Path, Root};
    use crate::failure::Failure;

    #[test]
    fn an_id_is_taken_once_and_its_directory_is_private() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::new(&scratch.path().join("deep/root")).unwrap();
        let id = "c1".parse().unwrap();
        let made = root.create(&id).unwrap();
        assert_eq!(fs::metadata(&made.path).unwrap().permissions().mode() & 0o777, 0o700);
        let again = root.create(&id).unwrap_err();
        assert!(matches!(again, Failure::Exists { .. }));
        assert!(again.line().starts_with("container with given ID already exists"));
        assert_eq!(root.ids().unwrap(), [id]);
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::new(&scratch.path().join("none")).unwrap();
        let error = root.open(&"c1".parse().unwrap()).unwrap_err();
        assert!(error.line().starts_with("container does not exist: c1 in "));
        assert!(root.ids().unwrap().is_empty());
        let missing = root.must_be_there().unwrap_err().line();
        assert!(missing.starts_with("cannot read the state directory "), "{missing}");
        Root::new(scratch.path()).unwrap().must_be_there().unwrap();
        Root::new(Path::new(DEFAULT_ROOT)).unwrap().must_be_there().unwrap();
    }

    #[test]
    fn a_root_that_is_a_file_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("file"), "").unwrap();
        let root = Root::new(&scratch.path().join("file")).unwrap();
        let error = root.create(&"c1".parse().unwrap()).unwrap_err().line();
        assert!(error.contains("file/c1") && error.contains("ot a directory"), "{error}");
    }

    #[test]
    fn a_directory_made_anew_is_another_one() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::new(scratch.path()).unwrap();
        let id = "c1".parse().unwrap();
        let made = root.create(&id).unwrap();
        assert!(!made.is_gone());
        fs::rename(&made.path, scratch.path().join("old")).unwrap();
        assert!(made.is_gone());
        let _anew = root.create(&id).unwrap();
        assert!(made.is_gone());
    }

    #[test]
    fn a_strange_record_names_its_file() {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root::new(scratch.path()).unwrap();
        let made = root.create(&"c1".parse().unwrap()).unwrap();
        assert!(made.record().unwrap().is_none());
        fs::write(made.path.join("state.json"), "{").unwrap();
        assert!(made.record().unwrap_err().line().contains("c1/state.json: not understood"));
    }
}
