//! `tmpcopyup`: a new tmpfs begins with what the image has at its place.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, mknodat, openat,
        readlinkat, statat, symlinkat,
    },
    path::Arg,
};

/// Deeper trees than this are refused rather than followed.
const MAX_DEPTH: usize = 64;

/// Copies the entries below `from` into `to`, owners and modes included.
pub fn copy_directory(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    copy_entries(from, to, 0)
}

fn copy_entries(from: impl AsFd, to: impl AsFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories nest too deep"));
    }
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from.as_fd(), to.as_fd(), name, depth)?;
    }
    Ok(())
}

fn copy_entry(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::CStr,
    depth: usize,
) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let open = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, mode)?;
            let directory = OFlags::RDONLY | OFlags::DIRECTORY | open;
            let from = openat(from, name, directory, Mode::empty())?;
            copy_entries(from, openat(to, name, directory, Mode::empty())?, depth + 1)?;
        }
        FileType::RegularFile => {
            let mut source = File::from(openat(from, name, OFlags::RDONLY | open, Mode::empty())?);
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | open;
            io::copy(&mut source, &mut File::from(openat(to, name, create, mode)?))?;
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?,
        kind => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name.into_c_str()?, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // After the owner, whose change takes set-id bits away.
        chmodat(to, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{Mode, OFlags, open};

    use super::copy_directory;

    #[test]
    fn files_links_and_directories_are_copied_with_their_modes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/f"), "content").unwrap();
        symlink("/nowhere", from.path().join("l")).unwrap();
        let directory =
            |path| open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        copy_directory(&directory(from.path()), &directory(to.path())).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("d/f")).unwrap(), "content");
        assert_eq!(fs::read_link(to.path().join("l")).unwrap().to_str(), Some("/nowhere"));
    }
}
