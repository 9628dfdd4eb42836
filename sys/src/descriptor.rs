//! Descriptors by number, and by the file that they are open on.

use std::os::fd::{AsFd, RawFd};

use rustix::{
    fs::{AtFlags, fstat, statat},
    path::Arg,
};

/// True while a path leads to the very file that is open, and not to none or to another that has been put there since.
pub fn is_at(opened: impl AsFd, parent: impl AsFd, path: impl Arg) -> bool {
    let (Ok(opened), Ok(named)) = (fstat(opened), statat(parent, path, AtFlags::SYMLINK_NOFOLLOW))
    else {
        return false;
    };
    (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
}

/// True when the process has a descriptor of this number at this moment.
///
/// The kernel hands out the lowest free number, so a high one that is open says that about as many are.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD has no argument and changes nothing, whether the number is a descriptor or not.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::CWD;

    use super::{is_at, is_open};

    #[test]
    fn another_file_of_the_same_name_is_another() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        assert!(is_at(&file, CWD, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_at(&file, CWD, &path));
        std::fs::File::create(&path).unwrap();
        assert!(!is_at(&file, CWD, &path));
    }

    #[test]
    fn open_and_closed_are_told_apart() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(is_open(file.as_raw_fd()));
        assert!(!is_open(1_000_000));
    }
}
