//! `/dev` of a container: nodes, links, and the device that masks paths.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, symlinkat},
    io::Errno,
};

use super::{
    mounts,
    paths::{Leaf, Root},
};
use crate::{
    order::{Failure, Step},
    spec::Device,
};

/// Those of every container: name, major, minor.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Paths of all the devices of a container.
pub fn paths(devices: &[Device]) -> Vec<PathBuf> {
    let defaults = DEFAULTS.iter().map(|(name, ..)| Path::new("/dev").join(name));
    let own = devices.iter().map(|device| PathBuf::from(&device.path));
    defaults
        .filter(|path| !devices.iter().any(|it| Path::new(&it.path) == path))
        .chain(own)
        .collect()
}

/// Makes the default devices, those of the spec, and the links.
///
/// A user namespace may not make nodes: where there is one, `nodes` has the agent's own to be bound instead.
pub fn make_all(
    root: &Root,
    devices: &[Device],
    nodes: &[(PathBuf, OwnedFd)],
) -> Result<(), Failure> {
    for (path, node) in nodes {
        root.make(path, Leaf::File)
            .and_then(|place| Ok(mounts::attach(node, place)?))
            .step(|| format!("bind device {}", path.display()))?;
    }
    if nodes.is_empty() {
        make_nodes(root, devices)?;
    }
    for (path, target) in LINKS {
        link(root, Path::new(path), target).step(|| format!("make link {path}"))?;
    }
    Ok(())
}

fn make_nodes(root: &Root, devices: &[Device]) -> Result<(), Failure> {
    for (name, major, minor) in DEFAULTS {
        let path = format!("/dev/{name}");
        if devices.iter().any(|device| device.path == path) {
            continue;
        }
        let kind = "c".to_owned();
        let file_mode = Some(0o666);
        let device = Device { kind, path, major, minor, file_mode, ..Device::default() };
        make(root, &device)?;
    }
    devices.iter().try_for_each(|device| make(root, device))
}

fn make(root: &Root, device: &Device) -> Result<(), Failure> {
    let step = || format!("make device {}", device.path);
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => {
            return Err(Failure::invalid(format!(
                "device {}: unknown type {other:?}",
                device.path
            )));
        }
    };
    let (parent, name) = parent_of(root, Path::new(&device.path)).step(step)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match mknodat(&parent, &name, kind, mode, makedev(device.major, device.minor)) {
        // The image or an earlier mount has it; what it is stays its own business.
        Err(Errno::EXIST) => return Ok(()),
        result => result.step(step)?,
    }
    let owner = Uid::from_raw(device.uid.unwrap_or(0));
    let group = Gid::from_raw(device.gid.unwrap_or(0));
    chownat(&parent, &name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).step(step)?;
    // The umask had its way with the mode.
    chmodat(&parent, &name, mode, AtFlags::empty()).step(step)
}

fn parent_of(root: &Root, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let name = path.file_name().ok_or_else(|| io::Error::from(Errno::INVAL))?;
    let parent = root.make(path.parent().unwrap_or(Path::new("/")), Leaf::Directory)?;
    Ok((parent, name.into()))
}

fn link(root: &Root, path: &Path, target: &str) -> io::Result<()> {
    let (parent, name) = parent_of(root, path)?;
    match symlinkat(target, &parent, &name) {
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
