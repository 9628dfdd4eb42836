//! What `install` is about to do to a file, told or done.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// A file that changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    path: PathBuf,
    /// What it is to hold; none: it is to go.
    text: Option<String>,
}

impl Change {
    pub(super) fn write(path: PathBuf, text: String) -> Self {
        Self { path, text: Some(text) }
    }

    pub(super) fn remove(path: PathBuf) -> Self {
        Self { path, text: None }
    }

    pub(super) fn to(path: PathBuf, text: Option<String>) -> Self {
        Self { path, text }
    }

    /// Whether the file is not yet as it is to be.
    fn is_due(&self) -> Result<bool, Failure> {
        Ok(read(&self.path)? != self.text)
    }

    fn make(&self) -> Result<(), Failure> {
        let failed = |error| Failure::host(format!("change {}", self.path.display()))(error);
        let Some(text) = &self.text else { return fs::remove_file(&self.path).map_err(failed) };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(failed)?;
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path)).map_err(failed)
    }

    /// Makes it, or tells of it.
    pub(super) fn settle(&self, dry_run: bool) -> Result<String, Failure> {
        let path = self.path.display();
        if !self.is_due()? {
            return Ok(format!("as it should be: {path}\n"));
        }
        if !dry_run {
            self.make()?;
        }
        Ok(match &self.text {
            None if dry_run => format!("would remove: {path}\n"),
            None => format!("removed: {path}\n"),
            Some(_) if !dry_run => format!("written: {path}\n"),
            Some(text) => {
                let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
                format!("would write: {path}\n{text}")
            }
        })
    }
}

/// The text of a file; none when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::host(format!("read {}", path.display()))(error)),
    }
}

/// A file that is somebody else's, and not such that it could be changed.
pub(super) fn unusable(path: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{} is left as it is: {why}", path.display()))
}
