//! Removes trees that somebody else has made.
//!
//! A guest, or the author of an image, may nest directories deeper than any path can name and than any stack can follow. So a
//! directory that has directories in it is not descended into: they are moved up, one below the top, and removed there.
//! However deep the tree, three descriptors do.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat},
    io::Errno,
};

/// Removes `name` in the directory `parent`, with all that is below it. It is no error if it is gone already.
///
/// # Errors
/// What the kernel says about the first thing that can't be removed, a mount point for example.
pub fn remove_tree(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return gone(done).map_err(io::Error::from),
    }
    let top = match open(&parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    let mut moved = 0;
    while empty(&top, &mut moved)? {}
    Ok(gone(unlinkat(&parent, name, AtFlags::REMOVEDIR))?)
}

/// One pass over the top; true when there was something.
fn empty(top: &OwnedFd, moved: &mut u64) -> Result<bool, Errno> {
    each(top, |name| match unlinkat(top, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {
            let directory = match open(top, name) {
                Err(Errno::NOENT) => return Ok(()),
                directory => directory?,
            };
            while each(&directory, |child| lift(&directory, child, top, moved))? {}
            gone(unlinkat(top, name, AtFlags::REMOVEDIR))
        }
        done => gone(done),
    })
}

/// Removes a file or an empty directory; moves any other directory to the top.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    match unlinkat(from, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return gone(done),
    }
    match unlinkat(from, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return gone(done),
    }
    loop {
        *moved += 1;
        let free = format!("{moved}");
        match renameat_with(from, name, top, free.as_str(), RenameFlags::NOREPLACE) {
            // The tree has such a name of its own.
            Err(Errno::EXIST) => {}
            done => return gone(done),
        }
    }
}

/// Calls for each name in a directory; true when there was one.
fn each(
    directory: &OwnedFd,
    mut act: impl FnMut(&CStr) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let mut some = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            some = true;
            act(entry.file_name())?;
        }
    }
    Ok(some)
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn gone(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

    use super::remove_tree;

    #[test]
    fn a_tree_goes_and_what_its_links_lead_to_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (tree, outside) = (scratch.path().join("tree"), scratch.path().join("outside"));
        fs::create_dir_all(tree.join("1/2/3")).unwrap();
        fs::create_dir_all(tree.join("a/2/3/4")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        fs::write(tree.join("a/2/file"), "").unwrap();
        symlink(&outside, tree.join("a/2/link")).unwrap();
        let parent = fs::File::open(scratch.path()).unwrap();
        remove_tree(&parent, OsStr::new("tree")).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        remove_tree(&parent, OsStr::new("tree")).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let parent = fs::File::open(scratch.path()).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut here = openat(CWD, scratch.path(), flags, Mode::empty()).unwrap();
        for _ in 0..1500 {
            mkdirat(&here, "deeper", Mode::RWXU).unwrap();
            here = openat(&here, "deeper", flags, Mode::empty()).unwrap();
        }
        drop(here);
        remove_tree(&parent, OsStr::new("deeper")).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
