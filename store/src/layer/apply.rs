//! Applies the changes of a layer to a tree, which shows all layers below it.
//!
//! One pass over the archive. Nothing is trusted to be what an earlier entry has made: each parent is resolved anew, and an
//! entry touches only one name in it. The times of directories are set at the end, for what is made in them changes them.
//!
//! Whiteouts hide what lower layers have and never what their own layer has, in whatever order the two come: `made` knows.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    hash::{BuildHasher, RandomState},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, ftruncate, linkat, makedev, mkdirat,
        mknodat, openat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};

use super::{
    Budget, LayerError,
    account::{Account, Failure},
    attributes,
    place::{self, system},
    shown,
};
use crate::tar::{Archive, Entry, Kind, Source};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs kept of its own.
const AUFS: &[u8] = b".wh..wh.";

/// Deepest tree that a whiteout removes: each level holds a descriptor.
const DEEPEST: usize = 256;

/// Most bytes of paths that are remembered of a layer.
const MOST_REMEMBERED: usize = 128 << 20;

/// Applies all entries of an archive; returns its source, which may have more bytes.
pub(crate) fn apply<S: Source>(
    source: S,
    root: BorrowedFd<'_>,
    budget: &mut Budget,
) -> Result<S, LayerError> {
    let mut archive = Archive::new(source);
    let mut changes = Changes::new(root, budget).map_err(failure(b"/", "look at it"))?;
    while let Some(entry) = archive.next()? {
        changes.apply(&entry, &mut archive)?;
    }
    changes.set_times()?;
    Ok(archive.into_inner())
}

struct Changes<'a> {
    root: BorrowedFd<'a>,
    account: Account<'a>,
    /// Hashes of the paths that this layer has made: whiteouts spare them.
    made: HashSet<u64>,
    hasher: RandomState,
    /// Directories that were changed, by their identity: their path, and the time they are to have.
    times: HashMap<(u64, u64), (PathBuf, (i64, u32))>,
    remembered: usize,
}

impl<'a> Changes<'a> {
    fn new(root: BorrowedFd<'a>, budget: &'a mut Budget) -> Result<Self, Errno> {
        Ok(Self {
            root,
            account: Account::new(root, budget)?,
            made: HashSet::new(),
            hasher: RandomState::new(),
            times: HashMap::new(),
            remembered: 0,
        })
    }

    fn apply<S: Source>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<S>,
    ) -> Result<(), LayerError> {
        let refuse = |why| LayerError::Refused { path: shown(&entry.path), why };
        let path = place::plain(&entry.path).map_err(refuse)?;
        if path.components().any(|part| part.as_os_str().as_bytes().starts_with(AUFS))
            && path.file_name() != Some(OsStr::from_bytes(OPAQUE))
        {
            return Ok(());
        }
        self.account.take(entry)?;
        let Some(name) = path.file_name() else {
            return match entry.kind {
                Kind::Directory => self.finish(self.root, entry, &path),
                _ => Err(refuse("the root of a layer must be a directory")),
            };
        };
        let failed = |attempted| failure(&entry.path, attempted);
        let above = path.parent().unwrap_or(Path::new(""));
        let parent =
            self.enter(above).map_err(failure_or_budget(&entry.path, "enter its directory"))?;
        if name.as_bytes() == OPAQUE {
            return self.empty(parent.as_fd(), above).map_err(failed("empty its directory"));
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(refuse("it hides nothing that has a name"));
            }
            let hidden = OsStr::from_bytes(hidden);
            self.remove(parent.as_fd(), hidden, (&above.join(hidden), 0))
                .map_err(failed("hide what is below"))?;
            return Ok(());
        }
        self.make(parent.as_fd(), name, entry, archive)?;
        let made = match entry.kind {
            // Its attributes are its target's.
            Kind::HardLink => None,
            _ => Some(open_here(parent.as_fd(), name).map_err(failed("open it"))?),
        };
        if let Some(made) = made {
            self.finish(made.as_fd(), entry, &path)?;
        }
        self.made.insert(self.hasher.hash_one(&path));
        Ok(())
    }

    /// Opens the directory that an entry changes.
    fn enter(&mut self, path: &Path) -> Result<OwnedFd, Failure> {
        let directory = place::directory(self.root, path, &mut self.account)?;
        self.account.change(directory.as_fd())?;
        let stat = fstat(&directory)?;
        // One that has no entry of its own keeps the time it had.
        if !self.times.contains_key(&(stat.st_dev, stat.st_ino)) {
            let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
            self.remember(&stat, path, (stat.st_mtime, nanoseconds))?;
        }
        Ok(directory)
    }

    /// Makes what an entry says; what is in its place goes, but for a directory in the place of a directory.
    fn make<S: Source>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        archive: &mut Archive<S>,
    ) -> Result<(), LayerError> {
        let failed = |attempted| failure(&entry.path, attempted);
        let target = match entry.kind {
            Kind::HardLink => Some(self.target(entry)?),
            _ => None,
        };
        let there = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        if let Ok(there) = &there {
            let directory = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
            if directory && entry.kind == Kind::Directory {
                return Ok(());
            }
            let same = |stat: &Stat| (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino);
            if target.as_ref().is_some_and(|target| same(&target.stat)) {
                return Ok(());
            }
            self.remove_all(parent, name, 0).map_err(failed("replace what is there"))?;
        }
        let device = || makedev(entry.device.0, entry.device.1);
        let private = Mode::RUSR | Mode::WUSR;
        match (entry.kind, target) {
            (Kind::File, _) => return self.write(parent, name, entry, archive),
            (Kind::Directory, _) => mkdirat(parent, name, Mode::RWXU),
            (Kind::Symlink, _) => symlinkat(OsStr::from_bytes(&entry.link), parent, name),
            (Kind::Fifo, _) => mknodat(parent, name, FileType::Fifo, private, 0),
            (Kind::CharacterDevice, _) if entry.device == (0, 0) => {
                let why = "a device 0:0 would hide a file, and is none";
                return Err(LayerError::Refused { path: shown(&entry.path), why });
            }
            (Kind::CharacterDevice, _) => {
                mknodat(parent, name, FileType::CharacterDevice, private, device())
            }
            (Kind::BlockDevice, _) => {
                mknodat(parent, name, FileType::BlockDevice, private, device())
            }
            (Kind::HardLink, Some(target)) => {
                let failed = failure_or_budget(&entry.path, "make it");
                return self.link(&target, parent, name).map_err(failed);
            }
            (Kind::HardLink, None) => Err(Errno::NOENT),
        }
        .map_err(failed("make it"))
    }

    fn link(
        &mut self,
        target: &Target,
        parent: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(), Failure> {
        self.account.link(target.parent.as_fd(), &target.stat)?;
        linkat(&target.parent, &target.name, parent, name, AtFlags::empty())?;
        // A copy of one of several names has another identity than the file had.
        self.account.made(&statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
        Ok(())
    }

    /// The file that a hard link is to be another name of, of this layer or of one below.
    fn target(&self, entry: &Entry) -> Result<Target, LayerError> {
        let refuse = |why| LayerError::Refused { path: shown(&entry.path), why };
        let path = place::plain(&entry.link).map_err(|_| refuse("it links to no plain path"))?;
        let name = path.file_name().ok_or_else(|| refuse("it links to the root"))?.to_owned();
        let above = path.parent().unwrap_or(Path::new(""));
        let failed = || failure(&entry.path, "find the file that it links to");
        let parent =
            place::open(self.root, above, OFlags::PATH | OFlags::DIRECTORY).map_err(failed())?;
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refuse("it links to a directory"));
        }
        Ok(Target { parent, name, stat })
    }

    fn write<S: Source>(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        archive: &mut Archive<S>,
    ) -> Result<(), LayerError> {
        let failed = |attempted| failure(&entry.path, attempted);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file =
            openat(parent, name, flags | OFlags::CLOEXEC, mode).map_err(failed("make it"))?;
        let file = File::from(file);
        let mut buffer = vec![0; 1 << 16];
        for extent in &entry.extents {
            let (mut offset, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                archive.read_data(&mut buffer[..length])?;
                file.write_all_at(&buffer[..length], offset).map_err(|source| {
                    LayerError::Entry { path: shown(&entry.path), attempted: "write it", source }
                })?;
                offset += length as u64;
                left -= length as u64;
            }
        }
        // GNU ends a map with an empty extent at the file's end, which writes nothing.
        let written = entry.extents.iter().rfind(|extent| extent.length > 0);
        let end = written.map_or(0, |extent| extent.offset + extent.length);
        if end != entry.size {
            ftruncate(&file, entry.size).map_err(failed("give it its size"))?;
        }
        Ok(())
    }

    /// Gives what was made its owner, mode and time.
    fn finish(
        &mut self,
        made: BorrowedFd<'_>,
        entry: &Entry,
        path: &Path,
    ) -> Result<(), LayerError> {
        attributes::set(made, entry).map_err(|(attempted, source)| LayerError::Entry {
            path: shown(&entry.path),
            attempted,
            source,
        })?;
        let failed = || failure(&entry.path, "set its time");
        let stat = fstat(made).map_err(failed())?;
        self.account.made(&stat);
        if entry.kind != Kind::Directory {
            return attributes::set_time(made, entry.modified).map_err(failed());
        }
        self.remember(&stat, path, entry.modified)
    }

    /// Remembers which time a directory is to have.
    fn remember(
        &mut self,
        stat: &Stat,
        path: &Path,
        modified: (i64, u32),
    ) -> Result<(), LayerError> {
        self.remembered += path.as_os_str().len();
        if self.remembered > MOST_REMEMBERED {
            return Err(LayerError::Entries);
        }
        self.times.insert((stat.st_dev, stat.st_ino), (path.to_owned(), modified));
        Ok(())
    }

    fn is_made(&self, path: &Path) -> bool {
        self.made.contains(&self.hasher.hash_one(path))
    }

    fn set_times(&self) -> Result<(), LayerError> {
        for (identity, (path, modified)) in &self.times {
            let opened = place::open(self.root, path, OFlags::PATH | OFlags::DIRECTORY);
            // It may have been removed, or replaced by something else.
            let Ok(directory) = opened else { continue };
            if fstat(&directory).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == *identity) {
                attributes::set_time(directory.as_fd(), *modified)
                    .map_err(failure(path.as_os_str().as_bytes(), "set its time"))?;
            }
        }
        Ok(())
    }

    /// An opaque whiteout: of a directory only what this layer has made is left.
    fn empty(&self, directory: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
        for name in names(directory)? {
            self.remove(directory, &name, (&path.join(&name), 0))?;
        }
        Ok(())
    }

    /// Removes what this layer has not made; true when nothing is left.
    fn remove(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        (path, depth): (&Path, usize),
    ) -> Result<bool, Errno> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(true),
            stat => stat?,
        };
        let mut empty = !self.is_made(path);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if empty {
                unlinkat(parent, name, AtFlags::empty())?;
            }
            return Ok(empty);
        }
        if depth > DEEPEST {
            return Err(Errno::NAMETOOLONG);
        }
        let directory = open_here(parent, name)?;
        for child in names(directory.as_fd())? {
            empty &= self.remove(directory.as_fd(), &child, (&path.join(&child), depth + 1))?;
        }
        if empty {
            unlinkat(parent, name, AtFlags::REMOVEDIR)?;
        }
        Ok(empty)
    }

    /// Removes whatever is there.
    fn remove_all(&self, parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> Result<(), Errno> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            done => return done,
        }
        if depth > DEEPEST {
            return Err(Errno::NAMETOOLONG);
        }
        let directory = open_here(parent, name)?;
        for child in names(directory.as_fd())? {
            self.remove_all(directory.as_fd(), &child, depth + 1)?;
        }
        unlinkat(parent, name, AtFlags::REMOVEDIR)
    }
}

/// What a hard link leads to.
struct Target {
    parent: OwnedFd,
    name: OsString,
    stat: Stat,
}

fn failure(path: &[u8], attempted: &'static str) -> impl Fn(Errno) -> LayerError {
    let path = shown(path);
    move |error| LayerError::Entry { path: path.clone(), attempted, source: system(error) }
}

fn failure_or_budget(path: &[u8], attempted: &'static str) -> impl Fn(Failure) -> LayerError {
    let failed = failure(path, attempted);
    move |failure| match failure {
        Failure::System(error) => failed(error),
        Failure::Budget(error) => error,
    }
}

fn open_here(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// All names in a directory, taken before anything in it is changed.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(readable)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::{Archive, Budget, Changes, LayerError, MOST_REMEMBERED};
    use crate::tar::writer::Writer;

    #[test]
    fn whiteouts_are_remembered_within_the_same_bound() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("d")).unwrap();
        let root = fs::File::open(scratch.path()).unwrap();
        for name in ["d/.wh.a", "d/.wh..wh..opq", "d/a"] {
            let layer = Writer::mine().file(name, b"").end();
            let mut archive = Archive::new(&layer[..]);
            let entry = archive.next().unwrap().unwrap();
            let mut budget = Budget::new(10, 1 << 20);
            let mut changes = Changes::new(root.as_fd(), &mut budget).unwrap();
            changes.remembered = MOST_REMEMBERED;
            let error = changes.apply(&entry, &mut archive).unwrap_err();
            assert!(matches!(error, LayerError::Entries), "{name}: {error}");
        }
    }
}
