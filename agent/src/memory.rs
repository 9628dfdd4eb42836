//! Volumes in the guest's memory, which containers of a pod share (docs/design/0017-volumes-of-a-pod.md).
//!
//! Each is a tmpfs that stays until the guest's end. Containers write to it, so no path in it leads out: what it holds by way of
//! links is looked up inside of it.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use kata_protocol::{
    MEMORY,
    agent::{MemoryVolume, VolumeNode},
};
use rustix::{
    fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat, openat2},
    io::Errno,
    mount::{MountFlags, mount},
};

use crate::order::{Failure, Step};

/// Makes what is not there yet.
pub fn make_all(volumes: &[MemoryVolume]) -> Result<(), Failure> {
    volumes
        .iter()
        .try_for_each(|volume| make(volume).step(|| format!("make memory {}", volume.number)))
}

fn make(volume: &MemoryVolume) -> io::Result<()> {
    let Some((root, below)) = volume.directories.split_first() else {
        return Err(Errno::INVAL.into());
    };
    let place = Path::new(MEMORY).join(volume.number.to_string());
    if !place.exists() {
        mount_at(&place, volume.bytes, root)?;
    }
    let root = open_volume(&place)?;
    below.iter().try_for_each(|directory| make_directory(&root, directory))
}

fn mount_at(place: &Path, bytes: u64, root: &VolumeNode) -> io::Result<()> {
    fs::create_dir_all(place)?;
    let mut options = format!("mode={:o},uid={},gid={}", root.mode & 0o7777, root.uid, root.gid);
    if bytes != 0 {
        options.push_str(&format!(",size={bytes}"));
    }
    let options = CString::new(options)?;
    mount("kata-memory", place, "tmpfs", MountFlags::empty(), options.as_c_str()).inspect_err(
        |_| {
            // What is there next time has to be a tmpfs.
            fs::remove_dir(place).ok();
        },
    )?;
    Ok(())
}

/// What has the name already is a container's, and stays.
fn make_directory(root: &OwnedFd, directory: &VolumeNode) -> io::Result<()> {
    let path = Path::new(&directory.path);
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let above = look_up(root, above)?;
    match mkdirat(&above, name, Mode::RWXU) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(&above, name, flags, Mode::empty())?;
    let VolumeNode { uid, gid, mode, .. } = directory;
    fchown(&made, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
    Ok(fchmod(&made, Mode::from_raw_mode(mode & 0o7777))?)
}

/// What a guest path leads to, if it leads into one of these volumes.
pub fn open(path: &Path) -> Option<io::Result<OwnedFd>> {
    let (volume, below) = split(path)?;
    Some(open_volume(&volume).and_then(|root| look_up(&root, &below)))
}

/// A volume, and the path in it.
fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut below = path.strip_prefix(MEMORY).ok()?.components();
    let volume = Path::new(MEMORY).join(below.next()?);
    Some((volume, below.as_path().to_owned()))
}

fn open_volume(place: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, place, flags, Mode::empty())?)
}

fn look_up(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{
            fd::OwnedFd,
            unix::fs::{PermissionsExt, symlink},
        },
        path::Path,
    };

    use kata_protocol::agent::VolumeNode;

    use super::{look_up, make_directory, split};

    fn directory(path: &str, mode: u32) -> VolumeNode {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        VolumeNode { path: path.into(), mode, uid, gid, directory: true, ..Default::default() }
    }

    #[test]
    fn a_path_is_split_at_the_volume() {
        let of = |path: &str| split(Path::new(path));
        let parts = |a: &str, b: &str| Some((a.into(), b.into()));
        assert_eq!(of("/run/kata/memory/3"), parts("/run/kata/memory/3", ""));
        assert_eq!(of("/run/kata/memory/3/a/b"), parts("/run/kata/memory/3", "a/b"));
        for other in ["/run/kata/memory", "/run/kata/volumes/3", "/run/kata/memoryx/3", "proc"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn directories_are_made_as_on_the_host_and_nothing_leads_out() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("volume");
        fs::create_dir(&place).unwrap();
        let root: OwnedFd = fs::File::open(&place).unwrap().into();
        for (path, mode) in [("a", 0o2750), ("a/b", 0o1777)] {
            make_directory(&root, &directory(path, mode)).unwrap();
            let made = fs::metadata(place.join(path)).unwrap().permissions().mode();
            assert_eq!(made & 0o7777, mode, "{path}");
        }
        // A container's own.
        make_directory(&root, &directory("a", 0o700)).unwrap();
        assert_eq!(fs::metadata(place.join("a")).unwrap().permissions().mode() & 0o7777, 0o2750);
        symlink("a", place.join("inside")).unwrap();
        make_directory(&root, &directory("inside/c", 0o755)).unwrap();
        assert!(place.join("a/c").is_dir());
        symlink(scratch.path(), place.join("outside")).unwrap();
        symlink("../..", place.join("above")).unwrap();
        for path in ["outside/x", "above/x", "a/../../x"] {
            make_directory(&root, &directory(path, 0o755)).unwrap_err();
            look_up(&root, Path::new(path)).unwrap_err();
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
