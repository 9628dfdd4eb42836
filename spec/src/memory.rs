//! Directories that a kubelet keeps in memory for a pod: `emptyDir` with `medium: Memory`, and what is below one by `subPath`.
//!
//! Their content is the pod's alone, as that of no other tmpfs of the host is; so it can be in a guest's memory. By nothing but
//! their path are they to be told from others.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use kata_sys::mount_table::MountTable;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, open, openat2};

use crate::mounts::TMPFS_MAGIC;

/// As a kubelet has it, below the directory of the pod.
const VOLUMES: &str = "volumes";
const KIND: &str = "kubernetes.io~empty-dir";
const SUB_PATHS: &str = "volume-subpaths";

/// More directories than a kubelet makes before the first container runs.
const MOST_DIRECTORIES: usize = 64;

/// A directory in memory, as the host has it.
#[derive(Debug, Clone)]
pub struct Memory {
    /// The whole file system's size.
    pub bytes: u64,
    /// Its root, which has an empty path, then each directory on the way to the one that is mounted.
    pub directories: Vec<Directory>,
    /// That root, on the kubelet's own mount: a kubelet that unmounts it before this is let go of is told that it is busy, and
    /// tries again.
    pub root: Arc<OwnedFd>,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// From the root.
    pub path: PathBuf,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Memory {
    /// What is mounted from this path, if it is such a directory, and with nothing mounted below.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let volume = volume_of(path)?;
        // What can't be looked at is the host's, unless a guest has it already, which the shim knows.
        Self::look(path, &volume).ok().flatten()
    }

    fn look(path: &Path, volume: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(volume, flags, Mode::empty())?;
        let filesystem = fstatfs(&opened)?;
        let stat = fstat(&opened)?;
        let device = stat.st_dev;
        let its_own = fs::metadata(volume.join(".."))?.dev() != device;
        // A magic number has 32 bits, the field of a 64-bit kernel has more.
        let memory = filesystem.f_type as u64 == TMPFS_MAGIC && its_own;
        let table = MountTable::default();
        if !memory || fs::metadata(path)?.dev() != device || table.has_below(path)? {
            return Ok(None);
        }
        let (Some(root), Some(below)) = (table.root_of(volume)?, table.root_of(path)?) else {
            return Ok(None);
        };
        if root != Path::new("/") {
            return Ok(None);
        }
        let mut directories = vec![Directory::new(PathBuf::new(), &stat)];
        for component in below.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => {
                    let above = directories.last().map(|above| above.path.join(name));
                    let below = above.unwrap_or_default();
                    let stat = fstat(inside(&opened, &below, OFlags::PATH)?)?;
                    directories.push(Directory::new(below, &stat));
                }
                // Removed from there meanwhile, in the kernel's words.
                _ => return Ok(None),
            }
        }
        let bytes = filesystem.f_blocks.saturating_mul(filesystem.f_bsize as u64);
        Ok(Some(Self { bytes, directories, root: Arc::new(opened) }))
    }

    /// Whether nothing is in it but directories, and few of them: then nobody has used it on the host.
    ///
    /// # Errors
    /// When one of them can't be read.
    pub fn is_unused(&self) -> io::Result<bool> {
        let mut directories = vec![PathBuf::from(".")];
        let mut looked_at = 0;
        while let Some(directory) = directories.pop() {
            looked_at += 1;
            for entry in Dir::new(inside(&self.root, &directory, OFlags::RDONLY)?)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let is_directory = entry.file_type() == FileType::Directory;
                if !is_directory || directories.len() + looked_at > MOST_DIRECTORIES {
                    return Ok(false);
                }
                directories.push(directory.join(OsStr::from_bytes(name)));
            }
        }
        Ok(true)
    }

    /// The directory that is mounted, from the root.
    #[must_use]
    pub fn below(&self) -> &Path {
        self.directories.last().map_or(Path::new(""), |last| &last.path)
    }
}

impl Directory {
    fn new(path: PathBuf, stat: &Stat) -> Self {
        Self { path, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
    }
}

/// Opens a directory of a volume. Containers may be writing to that, and must lead nobody out of it, nor to what they have had
/// mounted there.
fn inside(root: &OwnedFd, path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(root, path, flags, Mode::empty(), inside)?)
}

/// The volume that a path is, or that it is bound from:
/// `…/volumes/kubernetes.io~empty-dir/NAME` or `…/volume-subpaths/NAME/CONTAINER/NUMBER`.
fn volume_of(path: &Path) -> Option<PathBuf> {
    let mut above = path.ancestors();
    let mut next = || above.next()?.file_name().and_then(OsStr::to_str);
    let [last, second, third, fourth] = [next()?, next()?, next()?, next().unwrap_or_default()];
    if (second, third) == (KIND, VOLUMES) {
        return Some(path.to_owned());
    }
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    if fourth != SUB_PATHS || !is_number {
        return None;
    }
    let pod = path.ancestors().nth(4)?;
    Some(pod.join(VOLUMES).join(KIND).join(third))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
        path::Path,
        sync::Arc,
    };

    use rustix::{
        fs::OFlags,
        mount::{MountFlags, mount, mount_bind},
        thread::UnshareFlags,
    };

    use super::{Memory, inside, volume_of};

    #[test]
    fn only_a_kubelets_path_leads_to_a_volume() {
        let volume = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data";
        let of = |path: &str| volume_of(Path::new(path));
        assert_eq!(of(volume).as_deref(), Some(Path::new(volume)));
        let sub_path = "/var/lib/kubelet/pods/u/volume-subpaths/data/container/3";
        assert_eq!(of(sub_path).as_deref(), Some(Path::new(volume)));
        for other in [
            "/",
            "/dev/shm",
            "/volumes/kubernetes.io~empty-dir",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/data/below",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/data",
            "/var/lib/kubelet/pods/u/volume-subpaths/data/container",
            "/var/lib/kubelet/pods/u/volume-subpaths/data/container/file",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_holds_directories_alone_is_unused() {
        let root = tempfile::tempdir().unwrap();
        let opened = Arc::new(File::open(root.path()).unwrap().into());
        let memory = Memory { bytes: 0, directories: Vec::new(), root: opened };
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        assert!(memory.is_unused().unwrap());
        symlink("/proc/self", root.path().join("a/b/link")).unwrap();
        assert!(!memory.is_unused().unwrap());
        inside(&memory.root, Path::new("a/b"), OFlags::PATH).unwrap();
        for out in ["a/b/link", "a/b/link/fd", "..", "/proc"] {
            inside(&memory.root, Path::new(out), OFlags::PATH).expect_err(out);
        }
    }

    #[test]
    fn a_directory_of_a_disk_is_none_in_memory() {
        let scratch = tempfile::tempdir().unwrap();
        let volume = scratch.path().join("volumes/kubernetes.io~empty-dir/data");
        fs::create_dir_all(&volume).unwrap();
        assert!(Memory::at(&volume).is_none());
    }

    #[test]
    fn a_tmpfs_and_what_is_bound_from_it_are_one_in_memory() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let pod = tempfile::tempdir().unwrap();
        let volume = pod.path().join("volumes/kubernetes.io~empty-dir/data");
        let sub_path = pod.path().join("volume-subpaths/data/c/0");
        let other = pod.path().join("volume-subpaths/data/c/1");
        let inside = || {
            kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).unwrap();
            [&volume, &sub_path, &other].iter().for_each(|it| fs::create_dir_all(it).unwrap());
            let options = c"size=8m,mode=2777,gid=7";
            mount("tmpfs", &volume, "tmpfs", MountFlags::empty(), options).unwrap();
            let root = Memory::at(&volume).unwrap();
            let [directory] = &root.directories[..] else { panic!("{root:?}") };
            assert_eq!((root.bytes, directory.mode, directory.gid), (8 << 20, 0o2777, 7));
            assert_eq!((root.below(), root.is_unused().unwrap()), (Path::new(""), true));
            fs::create_dir_all(volume.join("a/b")).unwrap();
            mount_bind(volume.join("a/b"), &sub_path).unwrap();
            let below = Memory::at(&sub_path).unwrap();
            assert_eq!(below.directories[0], root.directories[0]);
            assert_eq!((below.below(), below.directories.len()), (Path::new("a/b"), 3));
            assert!(Memory::at(&other).is_none(), "it is of another file system");
            fs::write(volume.join("a/file"), "").unwrap();
            assert!(!Memory::at(&sub_path).unwrap().is_unused().unwrap());
            mount("tmpfs", volume.join("a"), "tmpfs", MountFlags::empty(), options).unwrap();
            assert!(Memory::at(&volume).is_none(), "something is mounted below");
            let volumes = pod.path().join("volumes");
            mount("tmpfs", &volumes, "tmpfs", MountFlags::empty(), options).unwrap();
            let late = volumes.join("kubernetes.io~empty-dir/late");
            fs::create_dir_all(&late).unwrap();
            assert!(Memory::at(&late).is_none(), "the tmpfs is not its own");
            mount("ramfs", &late, "ramfs", MountFlags::empty(), None).unwrap();
            assert!(Memory::at(&late).is_none(), "it is no tmpfs");
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }
}
