//! Where in a tree an entry belongs: always below the tree's root, whatever links the layers have.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat},
    io::Errno,
};

use super::account::{Account, Failure};

/// As many symbolic links as Linux follows.
const MOST_LINKS: usize = 40;

/// Longest path and longest name, as Linux has them.
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;

/// A path without dots and slashes that mean nothing; empty for the root itself.
pub(super) fn plain(path: &[u8]) -> Result<PathBuf, &'static str> {
    if path.len() >= LONGEST_PATH {
        return Err("its path is longer than 4095 bytes");
    }
    if path.contains(&0) {
        return Err("its path contains a NUL");
    }
    let mut plain = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) if name.len() > LONGEST_NAME => {
                return Err("its name is longer than 255 bytes");
            }
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => return Err("its path leads upwards (..)"),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(plain)
}

/// Opens something below the root without following a link at its end; links on the way stay below the root.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens a directory below the root; what is missing on the way is made.
pub(super) fn directory(
    root: BorrowedFd<'_>,
    path: &Path,
    account: &mut Account<'_>,
) -> Result<OwnedFd, Failure> {
    match open(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => make(root, path, account),
        opened => Ok(opened?),
    }
}

/// Walks component by component, as the kernel would below this root, and makes what is missing, also behind links.
fn make(root: BorrowedFd<'_>, path: &Path, account: &mut Account<'_>) -> Result<OwnedFd, Failure> {
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|_| Errno::MFILE);
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut here = own(root)?;
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            here = above.pop().unwrap_or(own(root)?);
            continue;
        }
        let next = enter(here.as_fd(), &part, account)?;
        if FileType::from_raw_mode(fstat(&next)?.st_mode) != FileType::Symlink {
            above.push(std::mem::replace(&mut here, next));
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = OsString::from_vec(readlinkat(&next, "", Vec::new())?.into_bytes());
        if target.as_bytes().starts_with(b"/") {
            above.clear();
            here = own(root)?;
        }
        for part in parts(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
            rest.push_front(part);
        }
        // Links that name each other would fill the memory before they are 40.
        if rest.len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
    }
    // A file on the way was opened, too; below it nothing can be.
    let directory = FileType::from_raw_mode(fstat(&here)?.st_mode) == FileType::Directory;
    if directory { Ok(here) } else { Err(Errno::NOTDIR.into()) }
}

/// Opens a directory, file or link; makes a directory where there is none of them.
fn enter(
    here: BorrowedFd<'_>,
    name: &OsStr,
    account: &mut Account<'_>,
) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(here, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            account.take_implied()?;
            mkdirat(here, name, Mode::from_raw_mode(0o755))?;
            let made = openat(here, name, flags, Mode::empty())?;
            account.made(&fstat(&made)?);
            Ok(made)
        }
        opened => Ok(opened?),
    }
}

/// The components of a path that are names or `..`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// The kernel's own words.
pub(super) fn system(error: Errno) -> io::Error {
    error.into()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, os::unix::fs::symlink, path::Path};

    use rustix::io::Errno;

    use super::{directory, plain};
    use crate::layer::{
        Budget, LayerError,
        account::{Account, Failure},
    };

    fn made(links: &[(&str, &str)], path: &str) -> Result<Vec<String>, Failure> {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("outer/root");
        fs::create_dir_all(&root).unwrap();
        for (name, target) in links {
            symlink(target, root.join(name)).unwrap();
        }
        let opened = fs::File::open(&root).unwrap();
        let mut budget = Budget::new(8, 8 * 4096);
        let mut account = Account::new(opened.as_fd(), &mut budget)?;
        directory(opened.as_fd(), Path::new(path), &mut account)?;
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(scratch.path().join("outer")).unwrap().count(), 1);
        let entries = fs::read_dir(&root).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn what_is_missing_is_made_below_the_root() {
        assert_eq!(made(&[], "a/b").unwrap(), ["a"]);
        assert_eq!(made(&[("l", "/x")], "l/b").unwrap(), ["l", "x"]);
        assert_eq!(made(&[("l", "../../../x/y")], "l/b").unwrap(), ["l", "x"]);
    }

    #[test]
    fn links_that_lead_nowhere_end() {
        for links in [&[("l", "l")][..], &[("l", "m/x"), ("m", "l/x")], &[("l", "l/l/l/l/l/l")]] {
            let failure = made(links, "l/b").unwrap_err();
            assert!(matches!(failure, Failure::System(Errno::LOOP)), "{failure:?}");
        }
    }

    #[test]
    fn what_is_made_is_taken_of_the_budget() {
        assert!(made(&[], "1/2/3/4/5/6/7/8").is_ok());
        let aside = [("l", "1/../2/../3/../4/../5/../6/../7/../8")];
        for (links, path) in [(&[][..], "1/2/3/4/5/6/7/8/9"), (&aside, "l/9")] {
            let failure = made(links, path).unwrap_err();
            assert!(matches!(failure, Failure::Budget(LayerError::Entries)), "{failure:?}");
        }
    }

    #[test]
    fn names_are_plain_or_refused() {
        assert_eq!(plain(b"/./a//b/").unwrap(), Path::new("a/b"));
        assert_eq!(plain(b"./").unwrap(), Path::new(""));
        for path in [&b"../a"[..], b"a/../b", b"a\0b", &[b'a'; 256], &b"a/".repeat(3000)] {
            assert!(plain(path).is_err());
        }
    }
}
