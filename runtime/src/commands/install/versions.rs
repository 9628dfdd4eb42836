//! Versions side by side: `DIR/VERSION-HASH/`, and `DIR/current`, a link to the one that new containers get.
//!
//! A program of ours finds the rest beside its own executable, links resolved, so a shim goes on with the files that it came with
//! whatever `current` says. A version is whole when it has its name, is never written to again, and goes only when no program
//! of it runs.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use kata_config::{Artefact, Prefix};
use kata_store::Digest;
use rustix::fs::FlockOperation;

use crate::failure::Failure;

/// The link that engines are told of.
const CURRENT: &str = "current";

/// What programs are known by: device and inode.
type Programs = HashSet<(u64, u64)>;

/// A directory of versions.
pub(super) struct Versions {
    directory: PathBuf,
    /// Held, so that two installations do not meet.
    _lock: Option<File>,
}

impl Versions {
    /// Opens it; made if need be, except for a dry run.
    pub(super) fn open(directory: &Path, dry_run: bool) -> Result<Self, Failure> {
        let failed = |error| Failure::host(format!("use {}", directory.display()))(error);
        if !directory.is_absolute() {
            return Err(Failure::Usage(format!("{} is not absolute", directory.display())));
        }
        if dry_run {
            return Ok(Self { directory: directory.to_owned(), _lock: None });
        }
        fs::create_dir_all(directory).map_err(failed)?;
        let lock = File::open(directory).map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        Ok(Self { directory: directory.to_owned(), _lock: Some(lock) })
    }

    /// What engines are to use: always the current version.
    pub(super) fn prefix(&self) -> Prefix {
        Prefix::at(self.directory.join(CURRENT))
    }

    /// Copies an installation here and makes it the current one; older ones that nothing uses go. Tells what was done.
    pub(super) fn add(&self, from: &Prefix, dry_run: bool) -> Result<String, Failure> {
        let name = name_of(from)?;
        let version = self.directory.join(&name);
        let before = fs::read_link(self.directory.join(CURRENT)).ok();
        let is_current = before.as_deref() == Some(Path::new(&name));
        let mut report = String::new();
        if version.is_dir() {
            report += &format!("as it should be: {}\n", version.display());
        } else {
            if !dry_run {
                self.copy(from, &version)?;
            }
            let verb = if dry_run { "would copy" } else { "copied" };
            report += &format!("{verb}: {}\n", version.display());
        }
        let link = self.directory.join(CURRENT);
        if !is_current {
            if !dry_run {
                self.switch(&name)?;
            }
            let verb = if dry_run { "would point" } else { "pointed" };
            report += &format!("{verb}: {} to {name}\n", link.display());
        }
        let keep = [Some(PathBuf::from(&name)), before];
        let keep: Vec<PathBuf> = keep.into_iter().flatten().collect();
        Ok(report + &self.prune(&keep, dry_run)?)
    }

    /// Removes all versions that nothing uses, and the link, by which engines call the runtime for what still runs.
    pub(super) fn remove(&self, dry_run: bool) -> Result<String, Failure> {
        let link = self.directory.join(CURRENT);
        let mut report = String::new();
        let mut keep = Vec::new();
        if let Ok(name) = fs::read_link(&link) {
            let running = running();
            if self.versions()?.iter().any(|version| is_in_use(version, &running)) {
                report += &format!("kept: {}, by which engines reach what runs\n", link.display());
                keep.push(name);
            } else {
                report += &told("remove", &link, dry_run);
                if !dry_run {
                    fs::remove_file(&link).map_err(failed("remove", &link))?;
                }
            }
        }
        report += &self.prune(&keep, dry_run)?;
        if !dry_run {
            // Not empty, or a mount: it stays.
            fs::remove_dir(&self.directory).ok();
        }
        Ok(report)
    }

    /// Removes versions, but for those to keep and those in use.
    fn prune(&self, keep: &[PathBuf], dry_run: bool) -> Result<String, Failure> {
        let running = running();
        let mut report = String::new();
        for path in self.versions()? {
            if keep.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            if is_in_use(&path, &running) {
                report += &format!("kept: {}, of which a program runs\n", path.display());
                continue;
            }
            report += &told("remove", &path, dry_run);
            if !dry_run {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(report)
    }

    /// Those that are whole.
    fn versions(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut versions = Vec::new();
        let Ok(entries) = fs::read_dir(&self.directory) else { return Ok(versions) };
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.directory))?;
            let path = entry.path();
            if path.join(Artefact::Monitor.relative_path()).is_file()
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                versions.push(path);
            }
        }
        Ok(versions)
    }

    /// All or nothing: a version has its name when it is whole and on the disk.
    fn copy(&self, from: &Prefix, version: &Path) -> Result<(), Failure> {
        let name = version.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let draft = self.directory.join(format!(".{name}.new"));
        match fs::remove_dir_all(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &draft)(error));
            }
            _ => {}
        }
        let to = Prefix::at(&draft);
        for artefact in Artefact::ALL {
            let (source, path) = (from.find(artefact)?, to.path(artefact));
            copy_file(&source, &path).map_err(failed("write", &path))?;
        }
        for directory in ["bin", "libexec/kata", "share/kata", "libexec", "share", ""] {
            let path = draft.join(directory);
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        }
        fs::rename(&draft, version).map_err(failed("rename", &draft))
    }

    fn switch(&self, name: &str) -> Result<(), Failure> {
        let (draft, link) = (self.directory.join(".current.new"), self.directory.join(CURRENT));
        // Of an installation that was interrupted.
        fs::remove_file(&draft).ok();
        symlink(name, &draft)
            .and_then(|()| fs::rename(&draft, &link))
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(failed("point", &link))
    }
}

fn told(verb: &str, path: &Path, dry_run: bool) -> String {
    match dry_run {
        true => format!("would {verb}: {}\n", path.display()),
        false => format!("{verb}d: {}\n", path.display()),
    }
}

fn failed(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
    Failure::host(format!("{verb} {}", path.display()))
}

/// Version and content: what has the same name is the same.
fn name_of(prefix: &Prefix) -> Result<String, Failure> {
    let mut digests = String::new();
    for artefact in Artefact::ALL {
        let path = prefix.find(artefact)?;
        let content = fs::read(&path).map_err(failed("read", &path))?;
        digests += Digest::of(&content).hex();
    }
    let digest = Digest::of(digests.as_bytes());
    Ok(format!("{}-{}", env!("CARGO_PKG_VERSION"), &digest.hex()[..12]))
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut source = File::open(from)?;
    let mut file = File::create_new(to)?;
    io::copy(&mut source, &mut file)?;
    let mode = if source.metadata()?.mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// The programs of all processes. Not seen from a container that has a `/proc` of its own: the chart shares the node's.
fn running() -> Programs {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let identity = |entry: fs::DirEntry| {
        let program = fs::metadata(entry.path().join("exe")).ok()?;
        Some((program.dev(), program.ino()))
    };
    entries.filter_map(identity).collect()
}

/// Whether a program of this version runs.
fn is_in_use(version: &Path, running: &Programs) -> bool {
    let version = Prefix::at(version);
    Artefact::ALL.into_iter().any(|artefact| {
        let program = fs::metadata(version.path(artefact));
        program.is_ok_and(|program| running.contains(&(program.dev(), program.ino())))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
        process::{Command, Stdio},
    };

    use kata_config::{Artefact, Prefix};

    use super::Versions;

    /// An installation whose programs wait for their input to end.
    fn built(directory: &Path, mark: &str) -> Prefix {
        let prefix = Prefix::at(directory.join(mark));
        for artefact in Artefact::ALL {
            let path = prefix.path(artefact);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy("/bin/cat", &path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(prefix.path(Artefact::Kernel), mark).unwrap();
        prefix
    }

    fn versions(home: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(home).into_iter().flatten().flatten();
        let mut found: Vec<_> =
            entries.filter(|e| e.file_type().unwrap().is_dir()).map(|e| e.path()).collect();
        found.sort();
        found
    }

    #[test]
    fn an_upgrade_never_takes_what_runs() {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path().join("home");
        let add = |mark: &str| {
            let versions = Versions::open(&home, false).unwrap();
            versions.add(&built(scratch.path(), mark), false).unwrap()
        };
        add("one");
        let current = home.join("current");
        let first = fs::canonicalize(&current).unwrap();
        let mut shim = Command::new(current.join("bin/containerd-shim-kata-v2"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        add("two");
        assert_eq!(versions(&home).len(), 2);
        let told = add("three");
        assert!(told.contains(&format!("kept: {}", first.display())), "{told}");
        assert!(first.join("libexec/kata/kata-monitor").is_file());
        assert_eq!(fs::read_to_string(current.join("share/kata/vmlinux")).unwrap(), "three");
        drop(shim.stdin.take());
        shim.wait().unwrap();
        add("three");
        assert_eq!(versions(&home), [fs::canonicalize(&current).unwrap()]);
        let again = add("three");
        assert_eq!(again.lines().count(), 1, "{again}");
        Versions::open(&home, false).unwrap().remove(false).unwrap();
        assert!(!home.exists());
    }

    #[test]
    fn the_link_stays_for_what_runs() {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path().join("home");
        let open = || Versions::open(&home, false).unwrap();
        open().add(&built(scratch.path(), "one"), false).unwrap();
        let current = home.join("current");
        let mut shim = Command::new(current.join("bin/containerd-shim-kata-v2"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Of another version, too: it is the newer one's runtime that ends what the older one began.
        for _ in 0..2 {
            let told = open().remove(false).unwrap();
            assert!(told.contains(&format!("kept: {}", current.display())), "{told}");
            assert!(current.join("bin/kata-runtime").is_file());
            open().add(&built(scratch.path(), "two"), false).unwrap();
        }
        drop(shim.stdin.take());
        shim.wait().unwrap();
        open().remove(false).unwrap();
        assert!(!home.exists());
    }

    #[test]
    fn a_dry_run_makes_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path().join("home");
        let versions = Versions::open(&home, true).unwrap();
        let told = versions.add(&built(scratch.path(), "one"), true).unwrap();
        assert!(told.contains("would copy") && told.contains("would point"), "{told}");
        assert!(!home.exists());
        assert!(Versions::open(Path::new("relative"), true).is_err());
    }
}
