//! What is mounted where the calling thread looks.

use std::{
    cell::OnceCell,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The table as it was when it was first asked. Some hosts have thousands of mounts, and a kernel lists them anew each time.
#[derive(Debug, Default)]
pub struct MountTable {
    mountinfo: OnceCell<Vec<u8>>,
}

impl MountTable {
    /// Whether anything is mounted below a directory, which may be a link.
    ///
    /// # Errors
    /// When the directory can't be looked up, or as of [`points`].
    pub fn has_below(&self, directory: &Path) -> io::Result<bool> {
        let directory = fs::canonicalize(directory)?;
        let mut points = column(self.mountinfo()?, POINT);
        Ok(points.any(|point| point != directory && point.starts_with(&directory)))
    }

    /// What of its file system is mounted on a directory, which may be a link; none when nothing is.
    ///
    /// # Errors
    /// As of [`Self::has_below`].
    pub fn root_of(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        let directory = fs::canonicalize(directory)?;
        let mountinfo = self.mountinfo()?;
        let roots = column(mountinfo, ROOT).zip(column(mountinfo, POINT));
        // The last is on top.
        Ok(roots.filter(|(_, point)| *point == directory).last().map(|(root, _)| root))
    }

    /// Whether the mount that a path is on shows other owners than its file system has.
    ///
    /// # Errors
    /// When the path can't be looked up, or the mount is not in this namespace.
    pub fn is_id_mapped(&self, path: &Path) -> io::Result<bool> {
        self.mounted_with(path, |options, _| has(options, "idmapped"))
    }

    /// Whether the mount that a path is on is read-only, and its file system is not.
    ///
    /// # Errors
    /// As of [`Self::is_id_mapped`].
    pub fn is_read_only_alone(&self, path: &Path) -> io::Result<bool> {
        self.mounted_with(path, |mount, filesystem| has(mount, "ro") && !has(filesystem, "ro"))
    }

    /// What the options of the mount that a path is on, and of its file system, say.
    fn mounted_with(&self, path: &Path, say: impl Fn(&[u8], &[u8]) -> bool) -> io::Result<bool> {
        // A kernel that knows no such number says 0, which is no mount's.
        let mount = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
        let found = options(self.mountinfo()?, mount).ok_or(io::ErrorKind::NotFound)?;
        Ok(say(found.0, found.1))
    }

    fn mountinfo(&self) -> io::Result<&[u8]> {
        if let Some(mountinfo) = self.mountinfo.get() {
            return Ok(mountinfo);
        }
        let mountinfo = read()?;
        Ok(self.mountinfo.get_or_init(|| mountinfo))
    }
}

/// Threads may be in namespaces of their own.
fn read() -> io::Result<Vec<u8>> {
    fs::read("/proc/thread-self/mountinfo")
}

/// Mount points, in the order in which they were mounted.
///
/// # Errors
/// When the kernel does not list them.
pub fn points() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&read()?))
}

/// [`MountTable::has_below`], of the table as it is now.
///
/// # Errors
/// As of that.
pub fn has_below(directory: &Path) -> io::Result<bool> {
    MountTable::default().has_below(directory)
}

fn has(options: &[u8], option: &str) -> bool {
    options.split(|byte| *byte == b',').any(|word| word == option.as_bytes())
}

/// Of a line of `mountinfo`, counted from 0.
const ID: usize = 0;
const ROOT: usize = 3;
const POINT: usize = 4;
const OPTIONS: usize = 5;

/// The options of a mount, and those of its file system.
fn options(mountinfo: &[u8], mount: u64) -> Option<(&[u8], &[u8])> {
    let id = mount.to_string();
    let mut lines = mountinfo.split(|byte| *byte == b'\n');
    let line = lines.find(|line| field(line, ID) == Some(id.as_bytes()))?;
    // They come last, after fields of which some mounts have more than others.
    Some((field(line, OPTIONS)?, line.rsplit(|byte| *byte == b' ').next()?))
}

fn field(line: &[u8], number: usize) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ').nth(number)
}

fn parse(mountinfo: &[u8]) -> Vec<PathBuf> {
    column(mountinfo, POINT).collect()
}

fn column(mountinfo: &[u8], number: usize) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines
        .filter_map(move |line| field(line, number))
        .map(|path| PathBuf::from(OsStr::from_bytes(&unescape(path))))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|_| *byte == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use rustix::{
        fs::CWD,
        mount::{
            MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_remount,
            move_mount, open_tree,
        },
        thread::UnshareFlags,
    };

    use super::{MountTable, has_below, options, parse};
    use crate::{
        jail::leave_namespaces,
        mount_attr::{Reach, map_ids},
        user_namespace,
    };

    #[test]
    fn mount_points_are_unescaped() {
        let points = parse(b"1 2 0:3 / /a\\040b rw - tmpfs t rw\n4 5 0:6 / /c rw - tmpfs t rw\n");
        assert_eq!(points, [PathBuf::from("/a b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_path_that_is_not_there_is_on_no_mount() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!MountTable::default().is_read_only_alone(directory.path()).unwrap());
        assert!(MountTable::default().is_read_only_alone(Path::new("/no/such/path")).is_err());
    }

    #[test]
    fn a_mount_point_is_not_below_itself() {
        assert!(has_below(Path::new("/")).unwrap());
        assert!(!has_below(Path::new("/proc/self/fd")).unwrap());
        assert!(has_below(Path::new("/no/such")).is_err());
        assert_eq!(
            MountTable::default().root_of(Path::new("/proc")).unwrap().as_deref(),
            Some(Path::new("/"))
        );
        assert_eq!(MountTable::default().root_of(Path::new("/proc/self/fd")).unwrap(), None);
    }

    #[test]
    fn a_mount_is_known_by_its_number() {
        let table =
            b"11 2 0:3 / /a rw,idmapped - tmpfs t rw\n1 2 0:3 / /a ro shared:5 - tmpfs t rw,x\n";
        assert_eq!(options(table, 11), Some((&b"rw,idmapped"[..], &b"rw"[..])));
        assert_eq!(options(table, 1), Some((&b"ro"[..], &b"rw,x"[..])));
        assert_eq!(options(table, 2), None);
    }

    #[test]
    fn a_table_is_as_it_was_when_it_was_first_asked() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().join("point");
        fs::create_dir(&point).unwrap();
        let inside = || {
            leave_namespaces(UnshareFlags::NEWNS).unwrap();
            let table = MountTable::default();
            assert!(!table.has_below(scratch.path()).unwrap());
            mount("tmpfs", &point, "tmpfs", MountFlags::empty(), None).unwrap();
            assert!(!table.has_below(scratch.path()).unwrap());
            assert!(has_below(scratch.path()).unwrap());
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    #[test]
    fn a_mount_is_read_only_for_itself_or_with_its_file_system() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let [written, bound] = ["written", "bound"].map(|name| scratch.path().join(name));
        [&written, &bound].iter().for_each(|path| fs::create_dir(path).unwrap());
        let inside = || {
            leave_namespaces(UnshareFlags::NEWNS).unwrap();
            mount("tmpfs", &written, "tmpfs", MountFlags::empty(), None).unwrap();
            mount_bind(&written, &bound).unwrap();
            mount_remount(&bound, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
            assert!(MountTable::default().is_read_only_alone(&bound).unwrap());
            assert!(!MountTable::default().is_read_only_alone(&written).unwrap());
            mount_remount(&written, MountFlags::RDONLY, "").unwrap();
            assert!(!MountTable::default().is_read_only_alone(&bound).unwrap());
            assert!(!MountTable::default().is_read_only_alone(&written).unwrap());
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    #[test]
    fn of_two_mounts_of_a_directory_one_may_show_other_owners() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let scratch = tempfile::tempdir().unwrap();
        let [plain, mapped] = ["plain", "mapped"].map(|name| scratch.path().join(name));
        [&plain, &mapped].iter().for_each(|path| fs::create_dir(path).unwrap());
        let inside = || {
            leave_namespaces(UnshareFlags::NEWNS).unwrap();
            let tree = open_tree(CWD, &plain, OpenTreeFlags::OPEN_TREE_CLONE).unwrap();
            let namespace = user_namespace::with_maps("0 1000 10\n", "0 1000 10\n").unwrap();
            if let Err(error) = map_ids(&tree, namespace, Reach::Mount) {
                return eprintln!("SKIP {} can't be id-mapped: {error}", plain.display());
            }
            move_mount(&tree, "", CWD, &mapped, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
            fs::create_dir(plain.join("other")).unwrap();
            assert!(!MountTable::default().is_id_mapped(&plain).unwrap());
            assert!(
                MountTable::default().is_id_mapped(&mapped).unwrap()
                    && MountTable::default().is_id_mapped(&mapped.join("other")).unwrap()
            );
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }
}
