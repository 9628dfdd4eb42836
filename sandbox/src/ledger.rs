//! What a sandbox leaves in the kernel that neither an fd, nor its processes, nor its mount namespace holds.
//!
//! An entry is written before the thing is made; so whatever is killed at whatever moment, replaying the ledger finds
//! everything. It is not synced to a disk: what it names are objects of the running kernel, which end with it, or a directory
//! of the image store, which sweeps those that nobody holds the lock of.
//! Replaying is idempotent: what is gone already is no error.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use kata_sys::removal::remove_tree;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cgroup, network,
    step::{InjectedFault, Step, Steps},
};

/// Name of the ledger in the sandbox directory.
pub const FILE: &str = "ledger";

/// Where a shorter one is written before it takes its place.
const DRAFT: &str = "ledger.new";

/// One thing that has to be taken away when the sandbox ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A sandbox's own cgroup directory: whatever runs in it or below is killed.
    Cgroup {
        /// Absolute host path.
        path: PathBuf,
    },
    /// A directory on the way to it, which other sandboxes may use too: removed when nobody does.
    CgroupParent {
        /// Absolute host path.
        path: PathBuf,
    },
    /// A directory of the sandbox's own on a disk: removed with all that is in it.
    Directory {
        /// Absolute host path.
        path: PathBuf,
    },
    /// The filter on the ingress hook, and the qdisc if it was made for it, of a link that belongs to an engine.
    Redirect {
        /// Host path of the network namespace.
        namespace: PathBuf,
        /// Device and inode of that namespace: another one at the same path is left alone.
        identity: (u64, u64),
        /// Name of the link, for people.
        link: String,
        /// Index of the link: its name may change.
        index: u32,
        /// Whether the qdisc was made for the filter.
        own_qdisc: bool,
        /// Whether a queueing discipline was made that limits what leaves by the link.
        #[serde(default)]
        limited: bool,
    },
    /// The table that leads localhost of a namespace into the guest.
    Localhost {
        /// Host path of the network namespace.
        namespace: PathBuf,
        /// Device and inode of that namespace: another one at the same path is left alone.
        identity: (u64, u64),
    },
}

/// What becomes of processes that are in a sandbox's own control group when it is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inmates {
    /// They are the sandbox's, and are killed.
    Kill,
    /// They are another sandbox's, which was given the same group, and keep it.
    Spare,
}

/// Why the ledger could not be written, read or replayed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LedgerError {
    #[error("open ledger")]
    Open(#[source] io::Error),
    #[error("append to ledger")]
    Append(#[source] io::Error),
    #[error("take entries out of the ledger")]
    Forget(#[source] io::Error),
    #[error("read ledger")]
    Read(#[source] io::Error),
    #[error("understand the ledger's line {line:?}: was it written by another version?")]
    Entry {
        line: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("remove cgroup {path}")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: cgroup::CgroupError,
    },
    #[error("remove {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("restore link {link}")]
    Redirect {
        link: String,
        #[source]
        source: Box<network::NetworkError>,
    },
    #[error("take localhost of {namespace} back from the guest")]
    Localhost {
        namespace: PathBuf,
        #[source]
        source: Box<network::NetworkError>,
    },
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

/// The open ledger of a live sandbox.
#[derive(Debug)]
pub struct Ledger {
    directory: OwnedFd,
    file: Mutex<File>,
}

impl Ledger {
    /// Opens, or begins, the ledger in a sandbox directory.
    ///
    /// # Errors
    /// [`LedgerError::Open`].
    pub fn open(directory: &OwnedFd) -> Result<Self, LedgerError> {
        let directory = directory.try_clone().map_err(LedgerError::Open)?;
        let file = open(&directory, FILE, OFlags::empty()).map_err(LedgerError::Open)?;
        Ok(Self { directory, file: Mutex::new(file) })
    }

    /// Writes an entry; only then may the thing be made.
    ///
    /// # Errors
    /// [`LedgerError::Append`].
    pub fn intend(&self, steps: &Steps, entry: &Entry) -> Result<(), LedgerError> {
        steps.enter(Step::WriteLedger)?;
        let mut line =
            serde_json::to_vec(entry).map_err(|e| LedgerError::Append(io::Error::other(e)))?;
        line.push(b'\n');
        self.file().and_then(|mut file| append(&mut file, &line)).map_err(LedgerError::Append)
    }

    /// Takes entries out whose things are gone: what has their names by the time of a replay is somebody else's.
    ///
    /// # Errors
    /// [`LedgerError::Forget`]; nothing is taken out then.
    pub fn forget(
        &self,
        steps: &Steps,
        is_gone: impl Fn(&Entry) -> bool,
    ) -> Result<(), LedgerError> {
        steps.enter(Step::WriteLedger)?;
        let forgotten = self.file().and_then(|mut file| {
            let text = read_whole(&mut file)?;
            let is_kept =
                |line: &&[u8]| !serde_json::from_slice(line).is_ok_and(|entry| is_gone(&entry));
            let lines = text.split_inclusive(|byte| *byte == b'\n');
            *file = self.shorten(&lines.filter(is_kept).collect::<Vec<_>>().concat())?;
            Ok(())
        });
        forgotten.map_err(LedgerError::Forget)
    }

    /// The file with a text that replaces it whole, whatever is killed meanwhile.
    fn shorten(&self, text: &[u8]) -> io::Result<File> {
        let mut draft = open(&self.directory, DRAFT, OFlags::TRUNC)?;
        let written = draft.write_all(text);
        let put = || renameat(&self.directory, DRAFT, &self.directory, FILE);
        written.and_then(|()| Ok(put()?)).inspect_err(|_| {
            // It may be a part of one; the first error is the one that counts.
            unlinkat(&self.directory, DRAFT, AtFlags::empty()).ok();
        })?;
        Ok(draft)
    }

    /// Takes away everything that it names, newest first, though somebody may have removed the file.
    ///
    /// All entries are tried; the first failure is returned.
    ///
    /// # Errors
    /// [`LedgerError`] of the first entry that could not be taken away.
    pub fn replay(&self, steps: &Steps, inmates: Inmates) -> Result<(), LedgerError> {
        let text = self.file().and_then(|mut file| read_whole(&mut file));
        let text = text.map_err(LedgerError::Read)?;
        undo_all(&text, steps, inmates)
    }

    fn file(&self) -> io::Result<MutexGuard<'_, File>> {
        self.file.lock().map_err(|_| io::Error::other("a user of the ledger panicked"))
    }
}

fn open(directory: &OwnedFd, name: &str, more: OFlags) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::APPEND | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat(directory, name, flags | more, Mode::RUSR | Mode::WUSR)?.into())
}

fn read_whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// Writes all of a line or none: the next would be lost behind a part of one.
fn append(file: &mut File, line: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(line).inspect_err(|_| {
        if let Err(error) = file.set_len(before) {
            tracing::warn!(%error, "take a part of a line out of the ledger");
        }
    })
}

/// The same for the ledger in `directory`, whose sandbox is gone; none there is no error.
///
/// # Errors
/// As of [`Ledger::replay`].
pub fn replay(directory: &Path, steps: &Steps) -> Result<(), LedgerError> {
    match fs::read(directory.join(FILE)) {
        Ok(text) => undo_all(&text, steps, Inmates::Kill),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(LedgerError::Read(e)),
    }
}

fn undo_all(text: &[u8], steps: &Steps, inmates: Inmates) -> Result<(), LedgerError> {
    // A line without an end was cut short by a crash, and describes a thing that was never made.
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
    let mut outcome = Ok(());
    for line in text[..end].rsplit(|byte| *byte == b'\n') {
        let entry = serde_json::from_slice::<Entry>(line).map_err(|source| LedgerError::Entry {
            line: String::from_utf8_lossy(line).into_owned(),
            source,
        });
        outcome = outcome.and(entry.and_then(|entry| undo(&entry, steps, inmates)));
    }
    outcome
}

fn undo(entry: &Entry, steps: &Steps, inmates: Inmates) -> Result<(), LedgerError> {
    match entry {
        Entry::Cgroup { path } => match inmates {
            Inmates::Kill => cgroup::remove(path),
            Inmates::Spare => cgroup::remove_unused(path),
        }
        .map_err(|source| LedgerError::Cgroup { path: path.clone(), source }),
        Entry::CgroupParent { path } => cgroup::remove_unused(path)
            .map_err(|source| LedgerError::Cgroup { path: path.clone(), source }),
        Entry::Directory { path } => remove_directory(path)
            .map_err(|source| LedgerError::Directory { path: path.clone(), source }),
        Entry::Redirect { namespace, identity, link, index, own_qdisc, limited } => {
            let redirected = network::Redirected {
                namespace,
                identity: *identity,
                link,
                index: *index,
                own_qdisc: *own_qdisc,
                limited: *limited,
            };
            network::restore_link(&redirected, steps).map_err(|source| LedgerError::Redirect {
                link: link.clone(),
                source: Box::new(source),
            })
        }
        Entry::Localhost { namespace, identity } => {
            network::localhost::close(namespace, *identity, steps).map_err(|source| {
                LedgerError::Localhost { namespace: namespace.clone(), source: Box::new(source) }
            })
        }
    }
}

/// What a container wrote is nested as deep as it liked.
fn remove_directory(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    match File::open(above) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        above => remove_tree(above?, name),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd, path::PathBuf};

    use super::{Entry, FILE, Inmates, Ledger, replay};
    use crate::step::Steps;

    fn directory() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = fs::File::open(directory.path()).unwrap().into();
        (directory, fd)
    }

    #[test]
    fn entries_are_appended_one_a_line() {
        let (directory, fd) = directory();
        let ledger = Ledger::open(&fd).unwrap();
        let entry = Entry::Cgroup { path: PathBuf::from("/nowhere/x") };
        ledger.intend(&Steps::default(), &entry).unwrap();
        ledger.intend(&Steps::default(), &entry).unwrap();
        let text = fs::read_to_string(directory.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(serde_json::from_str::<Entry>(text.lines().next().unwrap()).unwrap(), entry);
    }

    #[test]
    fn a_ledger_that_was_removed_is_known_to_its_sandbox() {
        let (directory, fd) = directory();
        let ledger = Ledger::open(&fd).unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        for path in [&first, &second] {
            ledger.intend(&Steps::default(), &Entry::Directory { path: path.clone() }).unwrap();
            fs::create_dir(path).unwrap();
        }
        fs::remove_file(directory.path().join(FILE)).unwrap();
        ledger.replay(&Steps::default(), Inmates::Kill).unwrap();
        assert!(!first.exists() && !second.exists());
        fs::create_dir(&second).unwrap();
        ledger.replay(&Steps::default(), Inmates::Kill).unwrap();
        assert!(!second.exists(), "it is read from its beginning each time");
    }

    #[test]
    fn what_was_taken_out_is_left_to_who_has_its_name() {
        let (directory, fd) = directory();
        let ledger = Ledger::open(&fd).unwrap();
        let names = ["before", "gone", "after"].map(|name| directory.path().join(name));
        let [before, gone, after] = &names;
        let entry = |path: &PathBuf| Entry::Cgroup { path: path.clone() };
        for path in [before, gone] {
            ledger.intend(&Steps::default(), &entry(path)).unwrap();
        }
        ledger.forget(&Steps::default(), |known| *known == entry(gone)).unwrap();
        ledger.intend(&Steps::default(), &entry(after)).unwrap();
        for path in &names {
            fs::create_dir(path).unwrap();
        }
        replay(directory.path(), &Steps::default()).unwrap();
        assert_eq!(names.each_ref().map(|path| path.exists()), [false, true, false]);
        fs::create_dir(after).unwrap();
        ledger.replay(&Steps::default(), Inmates::Kill).unwrap();
        assert!(gone.exists() && !after.exists(), "it is the same to who has it open");
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 2, "the ledger, and what is not in it");
    }

    #[test]
    fn replaying_what_is_gone_or_cut_short_is_no_error() {
        let (directory, fd) = directory();
        let ledger = Ledger::open(&fd).unwrap();
        ledger
            .intend(&Steps::default(), &Entry::Cgroup { path: directory.path().join("gone") })
            .unwrap();
        let written = directory.path().join("written");
        fs::create_dir_all(written.join("deep")).unwrap();
        ledger.intend(&Steps::default(), &Entry::Directory { path: written.clone() }).unwrap();
        let file = directory.path().join(FILE);
        let mut text = fs::read_to_string(&file).unwrap();
        text.push_str("{\"cgroup\":{\"pa");
        fs::write(&file, text).unwrap();
        replay(directory.path(), &Steps::default()).unwrap();
        assert!(!written.exists());
        replay(directory.path(), &Steps::default()).unwrap();
    }
}
