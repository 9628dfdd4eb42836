//! A kubelet's volume, read as a whole: the directory that `..data` leads to, and the links of the root. Where another volume is mounted
//! in it, the kubelet makes an empty directory beside them.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
};

use kata_protocol::agent::{VolumeLink, VolumeNode, WriteVolumeRequest};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat},
    io::Errno,
};

/// All contents together. A ConfigMap or Secret has at most 1 MiB, a message to the guest at most 4.
const MAX_BYTES: u64 = 3 << 20;
/// Files, directories and links.
const MAX_NODES: usize = 1024;
/// Directories in directories.
const MAX_DEPTH: usize = 16;

const DATA: &str = "..data";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is no volume of this layout.
    #[error("it is not laid out as a kubelet does: {0}")]
    Layout(&'static str),
    /// It is too much for the guest's memory.
    #[error("it has more than {MAX_BYTES} bytes, or more than {MAX_NODES} files")]
    TooLarge,
    /// Replaced while it was read.
    #[error("it changed while it was read")]
    Gone,
    /// The file system.
    #[error("cannot read it")]
    Read(#[source] io::Error),
}

impl From<Errno> for SnapshotError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT => Self::Gone,
            error => Self::Read(error.into()),
        }
    }
}

/// What is read so far.
#[derive(Default)]
struct Reading {
    nodes: Vec<VolumeNode>,
    bytes: u64,
}

/// Reads the volume as it is now. It follows no link.
pub fn snapshot(tree: &OwnedFd, number: u64) -> Result<WriteVolumeRequest, SnapshotError> {
    let data = match link(tree, DATA) {
        Err(SnapshotError::Gone | SnapshotError::Read(_)) => {
            return Err(SnapshotError::Layout("it has no ..data"));
        }
        data => data?,
    };
    if data.is_empty() || data.contains('/') || data == ".." {
        return Err(SnapshotError::Layout("..data leads out of it"));
    }
    let directory = openat(tree, data.as_str(), DIRECTORY, Mode::empty())?;
    let data = node(&statat(&directory, "", AtFlags::EMPTY_PATH)?, data);
    let mut reading = Reading::default();
    reading.walk(&directory, "", 0)?;
    let mut root = Root::default();
    root.read(tree)?;
    let Root { links, mount_points } = root;
    if reading.nodes.len() + links.len() + mount_points.len() > MAX_NODES {
        return Err(SnapshotError::TooLarge);
    }
    Ok(WriteVolumeRequest {
        number,
        root: Some(node(&statat(tree, "", AtFlags::EMPTY_PATH)?, String::new())).into(),
        data: Some(data).into(),
        nodes: reading.nodes,
        links,
        mount_points,
        ..Default::default()
    })
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What users of the volume see: links through `..data`, and directories. Names that begin with two dots are the kubelet's own.
#[derive(Default)]
struct Root {
    links: Vec<VolumeLink>,
    mount_points: Vec<VolumeNode>,
}

impl Root {
    fn read(&mut self, tree: &OwnedFd) -> Result<(), SnapshotError> {
        for name in names(tree)?.into_iter().filter(|name| !name.starts_with("..")) {
            let stat = statat(tree, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            match kind(&stat) {
                FileType::Symlink => {
                    let target = link(tree, &name)?;
                    self.links.push(VolumeLink { target, name, ..Default::default() });
                }
                FileType::Directory => {
                    self.mount_point(tree, &name, (node(&stat, name.clone()), 0))?
                }
                _ => return Err(SnapshotError::Layout("it has more than links")),
            }
        }
        Ok(())
    }

    /// A directory with nothing in it but such directories: a mount may be further down.
    fn mount_point(
        &mut self,
        above: &OwnedFd,
        name: &str,
        (mut node, depth): (VolumeNode, usize),
    ) -> Result<(), SnapshotError> {
        if depth > MAX_DEPTH || self.mount_points.len() >= MAX_NODES {
            return Err(SnapshotError::TooLarge);
        }
        let path = node.path.clone();
        node.directory = true;
        self.mount_points.push(node);
        let inside = openat(above, name, DIRECTORY, Mode::empty())?;
        for name in names(&inside)? {
            let stat = statat(&inside, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            if kind(&stat) != FileType::Directory {
                return Err(SnapshotError::Layout("it has directories that are not empty"));
            }
            let below = self::node(&stat, format!("{path}/{name}"));
            self.mount_point(&inside, &name, (below, depth + 1))?;
        }
        Ok(())
    }
}

impl Reading {
    fn walk(&mut self, directory: &OwnedFd, path: &str, depth: usize) -> Result<(), SnapshotError> {
        if depth > MAX_DEPTH {
            return Err(SnapshotError::TooLarge);
        }
        for name in names(directory)? {
            if self.nodes.len() >= MAX_NODES {
                return Err(SnapshotError::TooLarge);
            }
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let stat = statat(directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            let mut node = node(&stat, below.clone());
            match kind(&stat) {
                FileType::Directory => {
                    node.directory = true;
                    self.nodes.push(node);
                    let inside = openat(directory, name.as_str(), DIRECTORY, Mode::empty())?;
                    self.walk(&inside, &below, depth + 1)?;
                }
                FileType::RegularFile => {
                    node.content = self.content(directory, &name)?;
                    self.nodes.push(node);
                }
                _ => return Err(SnapshotError::Layout("it has more than files")),
            }
        }
        Ok(())
    }

    fn content(&mut self, directory: &OwnedFd, name: &str) -> Result<Vec<u8>, SnapshotError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(directory, name, flags, Mode::empty())?);
        let left = MAX_BYTES - self.bytes;
        let mut content = Vec::new();
        file.take(left + 1).read_to_end(&mut content).map_err(SnapshotError::Read)?;
        // As long as was allowed to be read.
        self.bytes += content.len() as u64;
        if self.bytes > MAX_BYTES { Err(SnapshotError::TooLarge) } else { Ok(content) }
    }
}

/// In their order, so that what is equal reads equal.
fn names(directory: &OwnedFd) -> Result<Vec<String>, SnapshotError> {
    // The tree is a descriptor that can't be read from.
    let mut names = Vec::new();
    for entry in Dir::new(openat(directory, ".", DIRECTORY, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_str();
        match name.map_err(|_| SnapshotError::Layout("it has names that are no text"))? {
            "." | ".." => {}
            name => names.push(name.to_owned()),
        }
        if names.len() > MAX_NODES {
            return Err(SnapshotError::TooLarge);
        }
    }
    names.sort();
    Ok(names)
}

fn link(directory: &OwnedFd, name: &str) -> Result<String, SnapshotError> {
    let target = readlinkat(directory, name, Vec::new())?;
    target.into_string().map_err(|_| SnapshotError::Layout("it has links that are no text"))
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn node(stat: &Stat, path: String) -> VolumeNode {
    VolumeNode {
        path,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::OwnedFd, unix::fs::symlink},
        path::Path,
    };

    use super::{MAX_BYTES, SnapshotError, snapshot};

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    fn volume() -> tempfile::TempDir {
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        fs::create_dir_all(at("..1/deep")).unwrap();
        fs::write(at("..1/key"), "value").unwrap();
        fs::write(at("..1/deep/er"), "more").unwrap();
        symlink("..1", at("..data")).unwrap();
        symlink("..data/key", at("key")).unwrap();
        symlink("..data/deep", at("deep")).unwrap();
        // Half of the next content.
        fs::create_dir(at("..2")).unwrap();
        volume
    }

    #[test]
    fn a_volume_is_what_its_link_leads_to() {
        let volume = volume();
        let read = snapshot(&open(volume.path()), 7).unwrap();
        let nodes: Vec<_> = read.nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(nodes, ["deep", "deep/er", "key"]);
        assert_eq!(
            (read.number, &read.data.path[..], &read.nodes[2].content[..]),
            (7, "..1", &b"value"[..])
        );
        let links: Vec<_> = read.links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(links, ["deep", "key"]);
        assert_eq!(snapshot(&open(volume.path()), 7).unwrap(), read);
    }

    #[test]
    fn directories_in_which_other_volumes_are_mounted_are_of_it() {
        let volume = volume();
        let read = || snapshot(&open(volume.path()), 7);
        let without = read().unwrap();
        for path in ["certs", "more/below"] {
            fs::create_dir_all(volume.path().join(path)).unwrap();
        }
        let with = read().unwrap();
        let paths: Vec<_> = with.mount_points.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(paths, ["certs", "more", "more/below"]);
        assert!(with != without && with.links == without.links && with.nodes == without.nodes);
        fs::write(volume.path().join("more/below/file"), "").unwrap();
        assert!(matches!(read(), Err(SnapshotError::Layout(_))), "it would not be in the copy");
    }

    #[test]
    fn what_is_laid_out_otherwise_is_none() {
        let at = |volume: &tempfile::TempDir, name: &str| volume.path().join(name);
        let refused = |volume: &tempfile::TempDir| snapshot(&open(volume.path()), 0).unwrap_err();
        let plain = tempfile::tempdir().unwrap();
        assert!(matches!(refused(&plain), SnapshotError::Layout("it has no ..data")));
        for target in ["/etc", "../x", ".."] {
            let out = tempfile::tempdir().unwrap();
            symlink(target, at(&out, "..data")).unwrap();
            assert!(matches!(refused(&out), SnapshotError::Layout(_)), "{target}");
        }
        let linked = volume();
        symlink("/etc/passwd", at(&linked, "..1/link")).unwrap();
        assert!(matches!(refused(&linked), SnapshotError::Layout(_)));
        let more = volume();
        fs::write(at(&more, "file"), "").unwrap();
        assert!(matches!(refused(&more), SnapshotError::Layout(_)));
        let large = volume();
        fs::File::create(at(&large, "..1/large")).unwrap().set_len(MAX_BYTES).unwrap();
        assert!(matches!(refused(&large), SnapshotError::TooLarge));
        let gone = volume();
        fs::remove_dir_all(at(&gone, "..1")).unwrap();
        assert!(matches!(refused(&gone), SnapshotError::Gone));
    }
}
