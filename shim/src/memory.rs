//! Which of a kubelet's directories in memory are in the guest's (docs/design/0017-volumes-of-a-pod.md).
//!
//! The first container that has one decides, for all that come: an empty one is made in the guest, one that is not stays the host's.
//! What comes later and can't be found in the guest is refused: the host has nothing of it, and an empty directory would be taken
//! for the volume.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use kata_protocol::{
    MEMORY,
    agent::{MemoryVolume, VolumeNode},
};
use kata_spec::{Directory, TMPFS_MAGIC, VolumeSource};
use rustix::fs::{fstat, fstatfs};

/// The directories of a sandbox, by the device of their file system.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<u64, Known>>);

struct Known {
    /// None: the host has it.
    number: Option<u64>,
    /// As long as this is open no other file system has the device.
    _tree: OwnedFd,
}

/// One that is in the guest.
pub struct InGuest {
    /// Where a container's mount is from.
    pub source: String,
    /// What the guest is asked to make.
    pub volume: MemoryVolume,
}

impl Memories {
    /// Where a volume is that the host has as `tree`; none when that is the host.
    pub fn place(
        &self,
        volume: &VolumeSource,
        tree: &OwnedFd,
        number: impl FnOnce() -> usize,
    ) -> io::Result<Option<InGuest>> {
        let device = fstat(tree)?.st_dev;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match (known.entry(device), &volume.memory) {
            (Entry::Occupied(known), _) => known.get().number,
            (Entry::Vacant(place), Some(memory)) => {
                // Only now that all hooks have run. What can't be looked at is the host's.
                let unused = memory.is_unused().unwrap_or(false);
                let number = unused.then(|| number() as u64);
                place.insert(Known { number, _tree: tree.try_clone()? }).number
            }
            // Whoever comes later by the kubelet's own way would have it in the guest.
            (Entry::Vacant(place), None) if is_in_memory(tree)? => {
                place.insert(Known { number: None, _tree: tree.try_clone()? }).number
            }
            (Entry::Vacant(_), None) => None,
        };
        number.map(|number| in_guest(volume, number).ok_or_else(|| lost(volume))).transpose()
    }
}

fn is_in_memory(tree: &OwnedFd) -> io::Result<bool> {
    Ok(fstatfs(tree)?.f_type as u64 == TMPFS_MAGIC)
}

fn lost(volume: &VolumeSource) -> io::Error {
    let mount = volume.mount;
    io::Error::other(format!(
        "mounts[{mount}].source: the pod has this file system in the guest's memory, and there it can't be had by another path, with mapped ids, or with what the host mounts in it"
    ))
}

/// None for what can't be found in the guest's. What the guest is told in text it has in text.
fn in_guest(volume: &VolumeSource, number: u64) -> Option<InGuest> {
    let memory = volume.memory.as_ref()?;
    let volume = Path::new(MEMORY).join(number.to_string());
    // Without a slash behind the volume's own number.
    let source: PathBuf = volume.join(memory.below()).components().collect();
    let directories = memory.directories.iter().map(node).collect::<Option<_>>()?;
    Some(InGuest {
        source: source.into_os_string().into_string().ok()?,
        volume: MemoryVolume { number, bytes: memory.bytes, directories, ..Default::default() },
    })
}

fn node(directory: &Directory) -> Option<VolumeNode> {
    let Directory { path, mode, uid, gid } = directory;
    Some(VolumeNode {
        path: path.to_str()?.to_owned(),
        mode: *mode,
        uid: *uid,
        gid: *gid,
        directory: true,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path, sync::Arc};

    use kata_spec::{Directory, Memory, Origin, VolumeSource};

    use super::Memories;

    fn volume(memory: Option<Memory>) -> VolumeSource {
        VolumeSource {
            mount: 3,
            origin: Origin::Path("/".into()),
            recursive: true,
            undivided: true,
            directory: true,
            read_only: false,
            read_only_below: false,
            id_map: None,
            memory,
            follows_host: false,
        }
    }

    /// One whose file system looks like a directory, and that has these on the way to what is mounted.
    fn memory(below: &[&str], root: &Path) -> VolumeSource {
        let directory = |path: &&str| Directory { path: path.into(), mode: 0o2777, uid: 0, gid: 7 };
        let directories = [""].iter().chain(below).map(directory).collect();
        let root = Arc::new(File::open(root).unwrap().into());
        volume(Some(Memory { bytes: 8 << 20, directories, root }))
    }

    #[test]
    fn the_first_container_decides_where_a_directory_is() {
        let device = |path: &str| File::open(path).unwrap().into();
        let (one, other) = (device("/proc"), device("/"));
        let (unused, used) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (unused, used) = (unused.path(), used.path());
        std::fs::write(used.join("file"), "").unwrap();
        let memories = Memories::default();
        let place = |volume: &VolumeSource, tree| memories.place(volume, tree, || 5).unwrap();
        assert!(place(&volume(None), &one).is_none(), "it is any directory of the host");
        let root = place(&memory(&[], unused), &one).unwrap();
        assert_eq!(root.source, "/run/kata/memory/5");
        assert_eq!((root.volume.bytes, root.volume.directories[0].mode), (8 << 20, 0o2777));
        // What the containers have written the host does not see; what is there now nobody uses.
        let below = place(&memory(&["a", "a/b"], used), &one).unwrap();
        assert_eq!(Path::new(&below.source), Path::new("/run/kata/memory/5/a/b"));
        assert_eq!((below.volume.number, below.volume.directories.len()), (5, 3));
        assert!(place(&memory(&[], used), &other).is_none());
        assert!(place(&memory(&[], unused), &other).is_none(), "containers have it from the host");
        let Err(lost) = memories.place(&volume(None), &one, || 6) else { panic!("it is found") };
        assert!(lost.to_string().starts_with("mounts[3].source: the pod has"), "{lost}");
        assert!(place(&volume(None), &other).is_none());
        // On it there is a tmpfs, or a devtmpfs, which is one too.
        let third = device("/dev");
        assert!(place(&volume(None), &third).is_none());
        assert!(place(&memory(&[], unused), &third).is_none(), "a container has it from the host");
    }
}
