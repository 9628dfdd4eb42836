//! Puts what was built where a system keeps it, and takes it away again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Place;
use crate::build::{self, copy_file};
use crate::layout::{DIRECTORIES, FILES, Prefix, SHARED, Workspace};

/// Installs; builds before that when nothing was built.
pub fn install(workspace: &Workspace, place: &Place) -> Result<()> {
    let from = workspace.staged();
    if !from.runtime().is_file() {
        build::everything(workspace, None)?;
    }
    let to = destination(place)?;
    for (name, mode) in FILES {
        copy_file(&from.0.join(name), &to.0.join(name), *mode)?;
        println!("    {}", to.0.join(name).display());
    }
    for (directory, file) in shared(&from)? {
        copy_file(&file, &to.0.join(directory).join(file.file_name().unwrap_or_default()), 0o644)?;
    }
    Ok(())
}

/// Kata's files in directories that it shares, below a prefix.
fn shared(prefix: &Prefix) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut found = Vec::new();
    for (directory, beginning) in SHARED {
        let path = prefix.0.join(directory);
        if !path.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
        for entry in entries {
            let file = entry.with_context(|| format!("list {}", path.display()))?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(beginning) {
                found.push((*directory, file));
            }
        }
    }
    Ok(found)
}

/// Removes the files that `install` writes, and the directories that are ours alone.
pub fn uninstall(place: &Place) -> Result<()> {
    let to = destination(place)?;
    for (name, _) in FILES {
        let path = to.0.join(name);
        gone(fs::remove_file(&path), &path)?;
    }
    for (_, file) in shared(&to)? {
        gone(fs::remove_file(&file), &file)?;
    }
    for name in DIRECTORIES {
        let path = to.0.join(name);
        gone(fs::remove_dir(&path), &path)?;
    }
    Ok(())
}

/// `DESTDIR` in front of the prefix, as packagers expect it.
fn destination(place: &Place) -> Result<Prefix> {
    if !place.prefix.is_absolute() {
        bail!("the prefix {} is not absolute", place.prefix.display());
    }
    if place.destdir.as_os_str().is_empty() {
        return Ok(Prefix(place.prefix.clone()));
    }
    let relative: PathBuf = place.prefix.components().skip(1).collect();
    Ok(Prefix(place.destdir.join(relative)))
}

fn gone(result: std::io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A file of somebody else's in our directory stays, and so does the directory.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
        Ok(()) => {
            println!("    removed {}", path.display());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(prefix: &str, destdir: &str) -> Place {
        Place { prefix: prefix.into(), destdir: destdir.into() }
    }

    #[test]
    fn destdir_goes_in_front_of_the_prefix() {
        let to = destination(&place("/usr/local", "/tmp/package")).unwrap();
        assert_eq!(to.0, Path::new("/tmp/package/usr/local"));
    }

    #[test]
    fn without_destdir_the_prefix_is_the_place() {
        assert_eq!(destination(&place("/opt/kata", "")).unwrap().0, Path::new("/opt/kata"));
    }

    #[test]
    fn what_others_have_beside_kata_is_left_alone() {
        let scratch = std::env::temp_dir().join(format!("kata-install-{}", std::process::id()));
        let man = scratch.join("share/man/man8");
        fs::create_dir_all(&man).unwrap();
        for name in ["kata-runtime.8", "kata-runtime-run.8", "mount.8"] {
            fs::write(man.join(name), "").unwrap();
        }
        let mut found = shared(&Prefix(scratch.clone())).unwrap();
        found.sort();
        fs::remove_dir_all(scratch).unwrap();
        let names: Vec<_> = found.iter().map(|(_, file)| file.file_name().unwrap()).collect();
        assert_eq!(names, ["kata-runtime-run.8", "kata-runtime.8"]);
    }

    #[test]
    fn a_relative_prefix_is_refused() {
        assert!(destination(&place("usr", "/tmp/package")).is_err());
    }
}
