//! What `install` is about to do to a file, told or done.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// A file that changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    path: PathBuf,
    /// What it is to hold; none: it is to go.
    text: Option<String>,
    /// Whose owner and mode it gets where it is not there yet.
    like: Option<PathBuf>,
}

impl Change {
    pub(super) fn write(path: PathBuf, text: String) -> Self {
        Self::to(path, Some(text))
    }

    /// A copy of what `original` holds, for nobody who may not read that.
    pub(super) fn copy(path: PathBuf, text: String, original: PathBuf) -> Self {
        Self { like: Some(original), ..Self::write(path, text) }
    }

    pub(super) fn remove(path: PathBuf) -> Self {
        Self::to(path, None)
    }

    pub(super) fn to(path: PathBuf, text: Option<String>) -> Self {
        Self { path, text, like: None }
    }

    /// Whether the file is not yet as it is to be.
    fn is_due(&self) -> Result<bool, Failure> {
        Ok(read(&self.path)? != self.text)
    }

    fn make(&self) -> Result<(), Failure> {
        let failed = |error| Failure::host(format!("change {}", self.path.display()))(error);
        let Some(text) = &self.text else { return fs::remove_file(&self.path).map_err(failed) };
        let path = followed(&self.path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let known = |path: &Path| match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            known => known.map(Some),
        };
        let like = match (known(&path).map_err(failed)?, &self.like) {
            (None, Some(like)) => known(like).map_err(failed)?,
            (like, _) => like,
        };
        let mut draft = path.clone().into_os_string();
        draft.push(".new");
        let draft = Path::new(&draft);
        let written = write(draft, text, like.as_ref()).and_then(|()| fs::rename(draft, &path));
        if written.is_err() {
            // The first error is the one that counts.
            fs::remove_file(draft).ok();
        }
        written.map_err(failed)
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

/// Where a file is: the place that a symbolic link names is somebody's choice, and stays.
fn followed(path: &Path) -> PathBuf {
    // So many the kernel follows, too.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    path
}

/// A new file, with the owner and the mode of another: until then nobody else reads it.
fn write(path: &Path, text: &str, like: Option<&Metadata>) -> io::Result<()> {
    match fs::remove_file(path) {
        // Of one that was interrupted.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mode = if like.is_some() { 0o600 } else { 0o666 };
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    if let Some(like) = like {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        // After the owner, whose change takes bits away.
        file.set_permissions(like.permissions())?;
    }
    file.sync_all()
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use super::{Change, read};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_that_changes_keeps_its_mode_and_so_has_its_copy() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, copy) = (scratch.path().join("x"), scratch.path().join("x.before"));
        for theirs in [0o600, 0o640, 0o664] {
            fs::write(&path, "secret").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(theirs)).unwrap();
            fs::remove_file(&copy).ok();
            // Of an attempt that was interrupted.
            fs::write(scratch.path().join("x.new"), "old").unwrap();
            let kept = Change::copy(copy.clone(), "secret".to_owned(), path.clone());
            kept.settle(false).unwrap();
            Change::write(path.clone(), "changed".to_owned()).settle(false).unwrap();
            assert_eq!((mode(&path), mode(&copy)), (theirs, theirs));
            assert_eq!(read(&path).unwrap().as_deref(), Some("changed"));
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_changes_keeps_its_owner() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("x");
        fs::write(&path, "").unwrap();
        if std::os::unix::fs::chown(&path, Some(7), Some(8)).is_err() {
            println!("SKIP only root can give files away");
            return;
        }
        let copy = scratch.path().join("copy");
        Change::copy(copy.clone(), String::new(), path.clone()).settle(false).unwrap();
        Change::write(path.clone(), "changed".to_owned()).settle(false).unwrap();
        for path in [path, copy] {
            let known = fs::metadata(path).unwrap();
            assert_eq!((known.uid(), known.gid()), (7, 8));
        }
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let scratch = tempfile::tempdir().unwrap();
        let place = |name: &str| scratch.path().join(name);
        fs::create_dir(place("elsewhere")).unwrap();
        fs::write(place("elsewhere/x"), "").unwrap();
        symlink("elsewhere/x", place("link")).unwrap();
        symlink("link", place("two")).unwrap();
        symlink("elsewhere/none", place("dangling")).unwrap();
        for (link, file) in [("two", "elsewhere/x"), ("dangling", "elsewhere/none")] {
            Change::write(place(link), "changed".to_owned()).settle(false).unwrap();
            assert!(fs::symlink_metadata(place(link)).unwrap().is_symlink(), "{link}");
            assert_eq!(fs::read_to_string(place(file)).unwrap(), "changed");
        }
    }
}
