//! Files that are replaced: who reads one finds the old text or the new one, whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process,
};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// Replaces, or makes, the file at `path`, relative to `directory`. A process writes to one path at a time.
///
/// # Errors
/// What the kernel says; the file is the old one then, and nothing is left beside it.
pub fn replace(directory: impl AsFd, path: &Path, mode: Mode, text: &[u8]) -> io::Result<()> {
    let draft = draft_of(path);
    let replaced = write(&directory, &draft, mode, text)
        .and_then(|()| Ok(renameat(&directory, &draft, &directory, path)?));
    if replaced.is_err() {
        // The room that a part of it takes may be what there is too little of; the first error is the one that counts.
        unlinkat(&directory, &draft, AtFlags::empty()).ok();
    }
    replaced
}

/// A name beside it that no other process uses.
fn draft_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", process::id()));
    path.with_file_name(name)
}

fn write(directory: impl AsFd, draft: &Path, mode: Mode, text: &[u8]) -> io::Result<()> {
    let flags =
        OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut draft = File::from(openat(directory, draft, flags, mode)?);
    draft.write_all(text)?;
    // A name that is on a disk before what it names shows an empty file after a crash.
    draft.sync_data()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rustix::fs::{CWD, Mode};

    use super::replace;

    const MODE: Mode = Mode::RUSR;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::File::open(directory.path()).unwrap();
        replace(CWD, &directory.path().join("x"), MODE, b"an older and longer text").unwrap();
        replace(&open, Path::new("x"), MODE, b"new").unwrap();
        assert_eq!(fs::read(directory.path().join("x")).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        // Nothing takes the place of a directory.
        fs::create_dir(directory.path().join("x")).unwrap();
        replace(CWD, &directory.path().join("x"), MODE, b"new").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
