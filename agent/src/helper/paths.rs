//! Paths below the root of a container that is being made.
//!
//! The tree is the container's: any component may be a symbolic link to anywhere. Every lookup is confined by
//! `openat2(RESOLVE_IN_ROOT)`, which reads links as the container itself will.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
    },
    io::Errno,
};

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    Directory,
    File,
}

/// The root directory.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Confines lookups to `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    pub fn directory(&self) -> &OwnedFd {
        &self.0
    }

    /// Opens what the container will see at `path`, to name it only.
    pub fn find(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.look_up(path, OFlags::PATH)
    }

    /// Opens what the container will see at `path`.
    pub fn look_up(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let confined = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), confined)
    }

    /// Whether what keeps `path` from being found is that links lead to each other, and not that one of the kernel's own
    /// (`/proc/self/root`) is in it.
    pub fn is_loop(&self, path: &Path) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        found.is_err_and(|error| error == Errno::LOOP)
    }

    /// Finds `path`, making what is missing of it: directories, and the leaf.
    pub fn make(&self, path: &Path, leaf: Leaf) -> io::Result<OwnedFd> {
        let mut ahead: VecDeque<OsString> = VecDeque::new();
        expand(path, &mut ahead);
        let mut resolved = PathBuf::new();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let here = resolved.join(&name);
            let found = match self.look_up(&here, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    let kind = if ahead.is_empty() { leaf } else { Leaf::Directory };
                    self.make_entry(&resolved, &name, kind)?;
                    self.look_up(&here, OFlags::PATH | OFlags::NOFOLLOW)?
                }
                Err(error) => return Err(error.into()),
            };
            if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
                resolved = here;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes());
            if Path::new(&target).is_absolute() {
                resolved.clear();
            }
            expand(Path::new(&target), &mut ahead);
        }
        Ok(self.find(&resolved)?)
    }

    fn make_entry(&self, parent: &Path, name: &OsStr, leaf: Leaf) -> io::Result<()> {
        let parent = self.find(parent)?;
        match leaf {
            Leaf::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
            Leaf::File => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::CLOEXEC
                    | OFlags::NOFOLLOW;
                drop(openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
            }
        }
        Ok(())
    }
}

/// Puts the components of `path` before those that are ahead; `..` stays, to be read when it is reached.
fn expand(path: &Path, ahead: &mut VecDeque<OsString>) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// What kind of mount point an opened file needs.
pub fn leaf_for(file: impl AsFd) -> io::Result<Leaf> {
    let kind = FileType::from_raw_mode(rustix::fs::statat(file, "", AtFlags::EMPTY_PATH)?.st_mode);
    Ok(if kind == FileType::Directory { Leaf::Directory } else { Leaf::File })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::{Leaf, Root, leaf_for};

    fn tree() -> (tempfile::TempDir, Root) {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        let root = Root::open(&outside.path().join("root")).unwrap();
        (outside, root)
    }

    #[test]
    fn missing_directories_and_a_missing_file_are_made() {
        let (outside, root) = tree();
        let file = root.make(Path::new("/a/b/c"), Leaf::File).unwrap();
        assert_eq!(leaf_for(&file).unwrap(), Leaf::File);
        assert!(outside.path().join("root/a/b/c").is_file());
    }

    #[test]
    fn a_link_can_not_lead_out_of_the_root() {
        let (outside, root) = tree();
        symlink(outside.path(), outside.path().join("root/escape")).unwrap();
        symlink("../../../..", outside.path().join("root/climb")).unwrap();
        root.make(Path::new("/escape/made"), Leaf::Directory).unwrap();
        root.make(Path::new("/climb/up"), Leaf::Directory).unwrap();
        assert!(!outside.path().join("made").exists());
        assert!(outside.path().join("root/up").is_dir());
        let inside = outside.path().join("root").join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("made").is_dir());
    }

    #[test]
    fn the_target_of_a_dangling_link_is_made() {
        let (outside, root) = tree();
        fs::create_dir(outside.path().join("root/var")).unwrap();
        symlink("/run", outside.path().join("root/var/run")).unwrap();
        root.make(Path::new("/var/run/secrets"), Leaf::Directory).unwrap();
        assert!(outside.path().join("root/run/secrets").is_dir());
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let (outside, root) = tree();
        symlink("loop", outside.path().join("root/loop")).unwrap();
        assert!(root.make(Path::new("/loop/x"), Leaf::Directory).is_err());
    }

    #[test]
    fn a_path_of_dots_stays_at_the_root() {
        let (_outside, root) = tree();
        let found = root.make(Path::new("/../.././"), Leaf::Directory).unwrap();
        let (a, b) =
            (rustix::fs::fstat(&found).unwrap(), rustix::fs::fstat(root.directory()).unwrap());
        assert_eq!(a.st_ino, b.st_ino);
    }
}
