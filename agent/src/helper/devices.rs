//! `/dev` of a container: nodes, links, and the device that masks paths.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, major, makedev, minor, mknodat,
        statat, symlinkat,
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
        let file_mode = Some(DEFAULT_MODE);
        // Nobody has asked for it: what an image has there is its own business.
        Device { kind, path, major, minor, file_mode, optional: true, ..Device::default() }
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
/// A user namespace may not make nodes: where there is one, `taken` has the agent's own to be bound instead, over whatever is in
/// their place, as with runc: the container has the device that was asked for, which is why nothing is refused. Those that turn
/// out to be needed only here are made in `nodes`.
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
        Node::Exists => may_cover(&parent, &name, device)?,
        // What serves the root to the guest may not make devices.
        Node::Forbidden => true,
    };
    if bound { bind(root, path, &take(device, node)?) } else { Ok(()) }
}

/// Whether a node is bound over what is there: over an empty file, which is what a bound node leaves. Anything else must
/// be the device itself.
fn may_cover(parent: impl AsFd, name: &Path, device: &Device) -> Result<bool, Failure> {
    let Device { kind, path, major: first, minor: second, .. } = device;
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let stat = stat.step(|| format!("make device {path}: look at what is there"))?;
    let there = FileType::from_raw_mode(stat.st_mode);
    let is_node = matches!(there, FileType::CharacterDevice | FileType::BlockDevice);
    if there == FileType::RegularFile && stat.st_size == 0 {
        return Ok(true);
    }
    let same =
        there == file_type(device)? && (!is_node || stat.st_rdev == makedev(*first, *second));
    if same || device.optional {
        return Ok(false);
    }
    let found = match there {
        FileType::CharacterDevice | FileType::BlockDevice => {
            let letter = if there == FileType::BlockDevice { 'b' } else { 'c' };
            format!("{letter} {}:{}", major(stat.st_rdev), minor(stat.st_rdev))
        }
        FileType::RegularFile => "a file".to_owned(),
        FileType::Directory => "a directory".to_owned(),
        FileType::Symlink => "a link".to_owned(),
        FileType::Fifo => "a fifo".to_owned(),
        FileType::Socket | FileType::Unknown => "something else".to_owned(),
    };
    Err(Failure::invalid(format!(
        "device {path}: {found} is there instead of {kind} {first}:{second}"
    )))
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

fn file_type(device: &Device) -> Result<FileType, Failure> {
    match device.kind.as_str() {
        "c" | "u" => Ok(FileType::CharacterDevice),
        "b" => Ok(FileType::BlockDevice),
        "p" => Ok(FileType::Fifo),
        other => Err(Failure::invalid(format!("device {}: unknown type {other:?}", device.path))),
    }
}

fn make_node(parent: impl AsFd, name: &Path, device: &Device) -> Result<Node, Failure> {
    let step = || format!("make device {}", device.path);
    let kind = file_type(device)?;
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::may_cover;
    use crate::spec::Device;

    fn null(optional: bool) -> Device {
        Device {
            kind: "c".into(),
            path: "/x".into(),
            major: 1,
            minor: 3,
            optional,
            ..Device::default()
        }
    }

    #[test]
    fn what_is_in_the_place_of_a_device_must_be_it_or_empty() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("empty"), "").unwrap();
        fs::write(root.path().join("full"), "x").unwrap();
        symlink("/dev/null", root.path().join("link")).unwrap();
        let place = fs::File::open(root.path()).unwrap();
        let devices = fs::File::open("/dev").unwrap();
        assert!(may_cover(&place, Path::new("empty"), &null(false)).unwrap());
        assert!(!may_cover(&devices, Path::new("null"), &null(false)).unwrap());
        let full = may_cover(&place, Path::new("full"), &null(false)).unwrap_err();
        assert_eq!(full.message, "device /x: a file is there instead of c 1:3");
        let zero = may_cover(&devices, Path::new("zero"), &null(false)).unwrap_err();
        assert_eq!(zero.message, "device /x: c 1:5 is there instead of c 1:3");
        assert!(may_cover(&place, Path::new("link"), &null(false)).is_err());
        for name in ["full", "link"] {
            assert!(!may_cover(&place, Path::new(name), &null(true)).unwrap(), "{name}");
        }
    }
}
