//! Which of a kubelet's directories in memory are in the guest's (docs/design/0017-volumes-of-a-pod.md).
//!
//! The first container that has one decides, for all that come: an empty one is made in the guest, one that is not stays the host's.

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
use kata_spec::{Directory, Memory};
use rustix::fs::fstat;

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
    /// Where a directory is that the host has as `tree`; none when that is the host.
    pub fn place(
        &self,
        memory: &Memory,
        tree: &OwnedFd,
        number: impl FnOnce() -> usize,
    ) -> io::Result<Option<InGuest>> {
        let device = fstat(tree)?.st_dev;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match known.entry(device) {
            Entry::Occupied(known) => known.get().number,
            Entry::Vacant(place) => {
                let number = memory.unused.then(|| number() as u64);
                place.insert(Known { number, _tree: tree.try_clone()? }).number
            }
        };
        Ok(number.and_then(|number| in_guest(memory, number)))
    }
}

/// What the guest is told in text it has in text.
fn in_guest(memory: &Memory, number: u64) -> Option<InGuest> {
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
    use std::{fs::File, path::Path};

    use kata_spec::{Directory, Memory};

    use super::Memories;

    fn memory(below: &[&str], unused: bool) -> Memory {
        let directory = |path: &&str| Directory { path: path.into(), mode: 0o2777, uid: 0, gid: 7 };
        let directories = [""].iter().chain(below).map(directory).collect();
        Memory { bytes: 8 << 20, directories, unused }
    }

    #[test]
    fn the_first_container_decides_where_a_directory_is() {
        let device = |path: &str| File::open(path).unwrap().into();
        let (one, other) = (device("/proc"), device("/"));
        let memories = Memories::default();
        let place = |memory: &Memory, tree| memories.place(memory, tree, || 5).unwrap();
        let root = place(&memory(&[], true), &one).unwrap();
        assert_eq!(root.source, "/run/kata/memory/5");
        assert_eq!((root.volume.bytes, root.volume.directories[0].mode), (8 << 20, 0o2777));
        // What the containers have written the host does not see; what is there now nobody uses.
        let below = place(&memory(&["a", "a/b"], false), &one).unwrap();
        assert_eq!(Path::new(&below.source), Path::new("/run/kata/memory/5/a/b"));
        assert_eq!((below.volume.number, below.volume.directories.len()), (5, 3));
        assert!(place(&memory(&[], false), &other).is_none());
        assert!(place(&memory(&[], true), &other).is_none(), "containers have it from the host");
    }
}
