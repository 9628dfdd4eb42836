//! `/dev` of a container: nodes, links, and the device that masks paths.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, statat,
        symlinkat,
    },
    io::Errno,
};

use super::{
    mounts,
    options::Extent,
    paths::{Leaf, Root},
};
use crate::{
    boot::NODES,
    order::{Failure, Step},
    spec::{Device, Linux},
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

const DEFAULT_MODE: u32 = 0o666;

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// What the container finds in `/dev`: the default devices and its own.
fn all(devices: &[Device]) -> impl Iterator<Item = Device> {
    let default = |(name, major, minor): (&str, u32, u32)| {
        let (kind, path) = ("c".to_owned(), format!("/dev/{name}"));
        Device { kind, path, major, minor, file_mode: Some(DEFAULT_MODE), ..Device::default() }
    };
    let own = |path: &str| devices.iter().any(|device| device.path == path);
    let defaults = DEFAULTS.into_iter().map(default).filter(move |device| !own(&device.path));
    defaults.chain(devices.iter().filter(|device| !left_out(device)).cloned())
}

fn located(device: Device) -> Result<Device, Failure> {
    let path = device.path.clone();
    device.located().step(|| format!("find the disk for {path}"))
}

/// Where the agent's own nodes of a container are, to be bound where it can't make them. None is another's, too: whoever it is
/// given to may change its mode.
pub fn nodes_of(container_id: &str) -> PathBuf {
    Path::new(NODES).join(container_id)
}

/// Nodes of all devices for a container that may not make its own, to be bound.
pub fn take_all(linux: &Linux, nodes: &Path) -> Result<Vec<(PathBuf, OwnedFd)>, Failure> {
    let outer = |(number, device): (usize, Device)| {
        let uid = Some(linux.outer_uid(device.uid.unwrap_or(0)));
        let gid = Some(linux.outer_gid(device.gid.unwrap_or(0)));
        let path = device.path.clone().into();
        let device = located(Device { uid, gid, ..device })?;
        take(&device, &nodes.join(number.to_string())).map(|node| (path, node))
    };
    all(&linux.devices).enumerate().filter(|(_, device)| !is_fifo(device)).map(outer).collect()
}

/// Anybody may make one.
fn is_fifo(device: &Device) -> bool {
    device.kind == "p"
}

/// A node of the agent's own, to be bound where it is wanted: a mount needs its file to stay where it is.
fn take(device: &Device, place: &Path) -> Result<OwnedFd, Failure> {
    let step = || format!("take device {}", device.path);
    place.parent().map_or(Ok(()), fs::create_dir_all).step(step)?;
    if make_node(CWD, place, device)? != Node::Made {
        let place = place.display();
        return Err(Failure::invalid(format!("device {}: {place} is not to be had", device.path)));
    }
    let node = mounts::clone_tree(place, Extent::Mount).step(step)?;
    mounts::admit_devices(&node).step(step)?;
    Ok(node)
}

/// Makes the default devices, those of the spec, and the links.
///
/// A user namespace may not make nodes: where there is one, `taken` has the agent's own to be bound instead. Those that turn out
/// to be needed only here are made in `nodes`.
pub fn make_all(
    root: &Root,
    devices: &[Device],
    (taken, nodes): (&[(PathBuf, OwnedFd)], &Path),
) -> Result<(), Failure> {
    taken.iter().try_for_each(|(path, node)| bind(root, path, node))?;
    let in_place = |device: &Device| taken.is_empty() || is_fifo(device);
    for (number, device) in all(devices).enumerate().filter(|(_, device)| in_place(device)) {
        make(root, &located(device)?, &nodes.join(number.to_string()))?;
    }
    for (path, target) in LINKS {
        link(root, Path::new(path), target).step(|| format!("make link {path}"))?;
    }
    Ok(())
}

/// True for one of an engine's list of all devices of its host that the guest does not have.
fn left_out(device: &Device) -> bool {
    let class = if device.kind == "b" { "block" } else { "char" };
    let known = Path::new("/sys/dev").join(class);
    device.optional && !known.join(format!("{}:{}", device.major, device.minor)).exists()
}

fn bind(root: &Root, path: &Path, node: &OwnedFd) -> Result<(), Failure> {
    root.make(path, Leaf::File)
        .and_then(|place| Ok(mounts::attach(node, place)?))
        .step(|| format!("bind device {}", path.display()))
}

fn make(root: &Root, device: &Device, node: &Path) -> Result<(), Failure> {
    let path = Path::new(&device.path);
    let (parent, name) = parent_of(root, path).step(|| format!("make device {}", device.path))?;
    let bound = match make_node(&parent, &name, device)? {
        Node::Made => false,
        // An empty file is what a bound node leaves; else it is the image's, or an earlier mount's, business.
        Node::Exists => statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
        }),
        // What serves the root to the guest may not make devices.
        Node::Forbidden => true,
    };
    if bound { bind(root, path, &take(device, node)?) } else { Ok(()) }
}

/// What came of making a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Made,
    /// There is something of that name.
    Exists,
    /// The file system takes none.
    Forbidden,
}

fn make_node(parent: impl AsFd, name: &Path, device: &Device) -> Result<Node, Failure> {
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
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(DEFAULT_MODE) & 0o7777);
    match mknodat(&parent, name, kind, mode, makedev(device.major, device.minor)) {
        Err(Errno::EXIST) => return Ok(Node::Exists),
        Err(Errno::PERM) => return Ok(Node::Forbidden),
        result => result.step(step)?,
    }
    let owner = Uid::from_raw(device.uid.unwrap_or(0));
    let group = Gid::from_raw(device.gid.unwrap_or(0));
    chownat(&parent, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).step(step)?;
    // The umask had its way with the mode.
    chmodat(&parent, name, mode, AtFlags::empty()).step(step)?;
    Ok(Node::Made)
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
