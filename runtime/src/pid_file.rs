//! `--pid-file`: whoever sees the file sees the whole pid.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// Writes the file atomically.
pub fn write(path: &Path, pid: u32) -> Result<(), Failure> {
    let unfinished = beside(path);
    let written =
        fs::write(&unfinished, pid.to_string()).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // The first error is the one that counts.
        fs::remove_file(&unfinished).ok();
    }
    written.map_err(Failure::host(format!("write the pid file {}", path.display())))
}

/// A name in the same directory that no other invocation uses.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::write;

    #[test]
    fn the_file_has_the_bare_number_and_nothing_is_left_beside() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pid");
        fs::write(&path, "an older and longer text").unwrap();
        write(&path, 42).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "42");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = write("/nonexistent/pid".as_ref(), 1).unwrap_err().line();
        assert!(error.starts_with("cannot write the pid file /nonexistent/pid: "), "{error}");
    }
}
