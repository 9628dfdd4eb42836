//! Puts what was built where a system keeps it, and takes it away again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Place;
use crate::build::{self, copy_file};
use crate::layout::{DIRECTORIES, FILES, Prefix, Workspace};

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
    Ok(())
}

/// Removes the files that `install` writes, and the directories that are ours alone.
pub fn uninstall(place: &Place) -> Result<()> {
    let to = destination(place)?;
    for (name, _) in FILES {
        let path = to.0.join(name);
        gone(fs::remove_file(&path), &path)?;
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
    fn a_relative_prefix_is_refused() {
        assert!(destination(&place("usr", "/tmp/package")).is_err());
    }
}
