//! Copies of small volumes of the host, in memory: what a kubelet writes for a pod and changes while it runs.
//!
//! A change is made as a kubelet makes it: a new directory is filled, then the link `..data` is renamed over the old one, then what
//! nothing leads to any more goes. So a program sees all of it or nothing, and the events of the file system that it would see
//! on the host.
//!
//! A container that may mount can write to its copy. So nothing here follows a link: what it has put there is its own loss.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use kata_protocol::{
    COPIES,
    agent::{VolumeLink, VolumeNode, WriteVolumeRequest},
};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat,
        readlinkat, renameat, symlinkat, unlinkat,
    },
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::order::{Failure, Step};

/// The link to the current content.
const DATA: &str = "..data";
/// Links are made under this name, and renamed.
const DRAFT: &str = "..data_tmp";
/// Two contents of the size that a request may have, and some more.
const OPTIONS: &std::ffi::CStr = c"mode=0755,size=16m,nr_inodes=8k";

/// Makes a copy, or changes it to what the request holds.
pub fn write(request: &WriteVolumeRequest) -> Result<(), Failure> {
    let place = place(request.number);
    let described = || format!("write the copy {}", request.number);
    let root = open_root(&place).step(described)?;
    set_owner(&root, &request.root).step(described)?;
    let data = one_name(&request.data.path)?;
    if link_target(&root, DATA).as_deref() != Some(data) {
        // Of a request that was not carried out to its end.
        forget(&place, &root, data).step(described)?;
        fill(&root, data, request).step(described)?;
        renew_link(&root, DATA, data).step(described)?;
    }
    make_mount_points(&root, &request.mount_points).step(described)?;
    for VolumeLink { name, target, .. } in &request.links {
        let name = one_name(name)?;
        match link_target(&root, name) {
            Some(there) if there == *target => {}
            _ => renew_link(&root, name, target).step(described)?,
        }
    }
    remove_others(&place, &root, request).step(described)
}

/// Takes a copy away; containers that have it still keep it until they end.
pub fn remove(number: u64) -> Result<(), Failure> {
    let place = place(number);
    match unmount(&place, UnmountFlags::DETACH) {
        Ok(()) => fs::remove_dir(&place).step(|| format!("remove the copy {number}")),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).step(|| format!("remove the copy {number}")),
    }
}

fn place(number: u64) -> PathBuf {
    Path::new(COPIES).join(number.to_string())
}

fn open_root(place: &Path) -> io::Result<OwnedFd> {
    if !place.exists() {
        fs::create_dir_all(place)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("kata-copy", place, "tmpfs", flags, OPTIONS).inspect_err(|_| {
            // What is there next time has to be a copy, which is bounded.
            fs::remove_dir(place).ok();
        })?;
    }
    Ok(openat(CWD, place, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The new content, below a name that nothing leads to yet.
fn fill(root: &OwnedFd, data: &str, request: &WriteVolumeRequest) -> io::Result<()> {
    let top = make_directory(root, data, &request.data)?;
    for node in &request.nodes {
        let (parent, name) = parent_of(&top, &node.path)?;
        if node.directory {
            make_directory(&parent, name, node)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(&parent, name, flags, Mode::empty())?;
            io::Write::write_all(&mut fs::File::from(file.try_clone()?), &node.content)?;
            set_owner(&file, node)?;
        }
    }
    Ok(())
}

/// Those that are there keep what is mounted on them.
fn make_mount_points(root: &OwnedFd, mount_points: &[VolumeNode]) -> io::Result<()> {
    for node in mount_points {
        let (parent, name) = parent_of(root, &node.path)?;
        match open_directory(&parent, name) {
            Ok(there) => set_owner(&there, node)?,
            Err(_) => drop(make_directory(&parent, name, node)?),
        }
    }
    Ok(())
}

fn make_directory(parent: impl AsFd, name: &str, node: &VolumeNode) -> io::Result<OwnedFd> {
    mkdirat(&parent, name, Mode::RWXU)?;
    let directory = open_directory(parent, name)?;
    set_owner(&directory, node)?;
    Ok(directory)
}

fn open_directory(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// The directory that a path ends in, and its last name.
fn parent_of<'a>(top: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let mut names = path.split('/').collect::<Vec<_>>();
    if !names.iter().all(|name| is_one_name(name)) {
        return Err(Errno::INVAL.into());
    }
    let last = names.pop().unwrap_or_default();
    let mut directory = top.try_clone()?;
    for name in names {
        directory = open_directory(&directory, name)?;
    }
    Ok((directory, last))
}

fn set_owner(file: impl AsFd, node: &VolumeNode) -> io::Result<()> {
    fchown(&file, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)))?;
    Ok(fchmod(file, Mode::from_raw_mode(node.mode & 0o7777))?)
}

fn link_target(root: &OwnedFd, name: &str) -> Option<String> {
    readlinkat(root, name, Vec::new()).ok()?.into_string().ok()
}

fn renew_link(root: &OwnedFd, name: &str, target: &str) -> io::Result<()> {
    match unlinkat(root, DRAFT, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    symlinkat(target, root, DRAFT)?;
    Ok(renameat(root, DRAFT, root, name)?)
}

/// What is not of this content goes: links first, so that none leads nowhere for long. A directory of the root goes with all that is in it,
/// and as long as it stays, so does that.
fn remove_others(place: &Path, root: &OwnedFd, request: &WriteVolumeRequest) -> io::Result<()> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let known = [".", "..", DATA, &request.data.path].contains(&name)
            || request.links.iter().any(|link| link.name == name)
            || request.mount_points.iter().any(|node| node.path == name);
        match entry.file_type() {
            _ if known => {}
            FileType::Directory => directories.push(name.to_owned()),
            _ => unlinkat(root, name, AtFlags::empty())?,
        }
    }
    directories.into_iter().try_for_each(|name| forget(place, root, &name))
}

/// Removes a directory with all in it, or what else has its name, or nothing.
fn forget(place: &Path, root: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(root, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // It follows no link below, either.
        Err(Errno::ISDIR) => fs::remove_dir_all(place.join(name)),
        Err(error) => Err(error.into()),
    }
}

fn one_name(name: &str) -> Result<&str, Failure> {
    if is_one_name(name) { Ok(name) } else { Err(Failure::invalid(format!("{name:?} is no name"))) }
}

fn is_one_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(one)), None) if one == name)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd};

    use kata_protocol::agent::{VolumeNode, WriteVolumeRequest};

    use super::{is_one_name, make_mount_points, remove_others};

    #[test]
    fn a_mount_point_stays_for_as_long_as_the_volume_has_it_or_what_is_above() {
        let volume = tempfile::tempdir().unwrap();
        let root: OwnedFd = fs::File::open(volume.path()).unwrap().into();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let node = |path: &str| VolumeNode {
            path: path.into(),
            mode: 0o750,
            uid,
            gid,
            directory: true,
            ..Default::default()
        };
        let write = |mount_points: Vec<VolumeNode>| {
            let request = WriteVolumeRequest {
                data: Some(node("..1")).into(),
                mount_points,
                ..Default::default()
            };
            make_mount_points(&root, &request.mount_points).unwrap();
            remove_others(volume.path(), &root, &request).unwrap();
        };
        write(vec![node("a"), node("a/b"), node("c")]);
        // As if something were mounted there.
        fs::write(volume.path().join("a/b/file"), "").unwrap();
        write(vec![node("a"), node("a/b")]);
        assert!(volume.path().join("a/b/file").exists() && !volume.path().join("c").exists());
        write(vec![node("a")]);
        assert!(volume.path().join("a/b/file").exists());
        make_mount_points(&root, &[node("../out")]).unwrap_err();
        write(vec![]);
        assert!(!volume.path().join("a").exists());
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in ["a", "..data", "..2026_11_22_10", "key.txt"] {
            assert!(is_one_name(good), "{good}");
        }
        for bad in ["", ".", "..", "/", "a/b", "a/", "/a"] {
            assert!(!is_one_name(bad), "{bad}");
        }
    }
}
