//! Where the sandboxes of engines have their directories.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::{Path, PathBuf},
};

use kata_engine_api::dial::SHIM_SOCKET;
use kata_sys::descriptor::is_at;
use rustix::fs::{CWD, FlockOperation, flock};

/// Directory of all of them.
const ROOT: &str = "/run/kata-shim";

/// Longest parts of a name that are kept: with them a socket's path stays below the 108 bytes that an address holds.
const NAMESPACE: usize = 24;
const ID: usize = 20;

/// The directory of an engine's sandbox. Two engines, and two namespaces of one, may use the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// The place of the sandbox `id`. The parts that a person reads are cut; the hash tells apart.
    pub fn of(address: &str, namespace: &str, id: &str) -> Self {
        let hash = hash(&[address, namespace, id]);
        Self(Path::new(ROOT).join(format!("{namespace:.NAMESPACE$}-{id:.ID$}-{hash:016x}")))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The address that is told to an engine.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The socket behind it.
    pub fn socket(&self) -> PathBuf {
        self.0.join(SHIM_SOCKET)
    }

    /// The directory of a container in it.
    pub fn container(&self, id: &str) -> PathBuf {
        self.0.join(CONTAINERS).join(id)
    }

    /// Connects to the shim; none when nobody listens.
    ///
    /// # Errors
    /// Those of connect(2) that say nothing of whether there is a shim.
    pub fn connect(&self) -> io::Result<Option<UnixStream>> {
        match UnixStream::connect(self.socket()) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Makes the directory, if it is not there, and keeps everybody else from starting a shim in it as long as it is open.
    ///
    /// # Errors
    /// Those of mkdir(2), open(2) and flock(2).
    pub fn lock(&self) -> io::Result<File> {
        loop {
            let made = DirBuilder::new().mode(0o700).recursive(true).create(&self.0);
            let directory = match made.and_then(|()| File::open(&self.0)) {
                // It, or the root, was removed meanwhile, and so may be what is locked below.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                directory => directory?,
            };
            rustix::io::retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
            if is_at(&directory, CWD, &self.0) {
                return Ok(directory);
            }
        }
    }

    /// One in a directory of a test's.
    #[cfg(test)]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Takes the common root away with the last sandbox: a machine is as it was before.
    pub fn tidy_up() {
        // Not empty, or gone already: both are fine.
        std::fs::remove_dir(ROOT).ok();
    }
}

/// Directory of the containers' own ones, in that of their sandbox.
pub const CONTAINERS: &str = "containers";

/// FNV-1a, which is the same in every version of this program; each part ends with a byte that is in none.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn an_address_fits_whatever_the_names() {
        let long = "x".repeat(200);
        let place = Place::of("/run/containerd/containerd.sock", &long, &long);
        assert!(place.socket().as_os_str().len() < 108, "{}", place.address());
    }

    #[test]
    fn what_differs_beyond_the_cut_is_told_apart() {
        let long = "x".repeat(76);
        let places = [
            Place::of("/a", "n", &long),
            Place::of("/b", "n", &long),
            Place::of("/a", "m", &long),
            Place::of("/a", "n", &format!("{long}y")),
        ];
        for (index, place) in places.iter().enumerate() {
            assert!(!places[..index].contains(place));
        }
    }
}
