//! What is mounted where the calling thread looks.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Mount points, in the order in which they were mounted.
///
/// # Errors
/// When the kernel does not list them.
pub fn points() -> io::Result<Vec<PathBuf>> {
    // Threads may be in namespaces of their own.
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

/// Whether anything is mounted below a directory, which may be a link.
///
/// # Errors
/// When the directory can't be looked up, or as of [`points`].
pub fn has_below(directory: &Path) -> io::Result<bool> {
    let directory = fs::canonicalize(directory)?;
    Ok(points()?.iter().any(|point| *point != directory && point.starts_with(&directory)))
}

/// What of its file system is mounted on a directory, which may be a link; none when nothing is.
///
/// # Errors
/// As of [`has_below`].
pub fn root_of(directory: &Path) -> io::Result<Option<PathBuf>> {
    let directory = fs::canonicalize(directory)?;
    let mountinfo = fs::read("/proc/thread-self/mountinfo")?;
    let roots = column(&mountinfo, ROOT).zip(column(&mountinfo, POINT));
    // The last is on top.
    Ok(roots.filter(|(_, point)| *point == directory).last().map(|(root, _)| root))
}

/// Of a line of `mountinfo`, counted from 0.
const ROOT: usize = 3;
const POINT: usize = 4;

fn parse(mountinfo: &[u8]) -> Vec<PathBuf> {
    column(mountinfo, POINT).collect()
}

fn column(mountinfo: &[u8], number: usize) -> impl Iterator<Item = PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines
        .filter_map(move |line| line.split(|byte| *byte == b' ').nth(number))
        .map(|field| PathBuf::from(OsStr::from_bytes(&unescape(field))))
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
    use std::path::{Path, PathBuf};

    use super::{has_below, parse, root_of};

    #[test]
    fn mount_points_are_unescaped() {
        let points = parse(b"1 2 0:3 / /a\\040b rw - tmpfs t rw\n4 5 0:6 / /c rw - tmpfs t rw\n");
        assert_eq!(points, [PathBuf::from("/a b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_mount_point_is_not_below_itself() {
        assert!(has_below(Path::new("/")).unwrap());
        assert!(!has_below(Path::new("/proc/self/fd")).unwrap());
        assert!(has_below(Path::new("/no/such")).is_err());
        assert_eq!(root_of(Path::new("/proc")).unwrap().as_deref(), Some(Path::new("/")));
        assert_eq!(root_of(Path::new("/proc/self/fd")).unwrap(), None);
    }
}
