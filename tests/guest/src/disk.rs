//! Disks and file systems of the host.

use std::{
    ffi::CString,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use tempfile::NamedTempFile;

use crate::run;

/// A loop device of 1 MiB, all zeros. Dropping it takes it away.
#[derive(Debug)]
pub struct LoopDevice {
    file: NamedTempFile,
    device: PathBuf,
}

impl LoopDevice {
    /// `None`, after a word on why, where the host has none to spare.
    pub fn new() -> Option<Self> {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(file.path());
        let output = run(losetup, b"");
        if output.code != 0 {
            println!("SKIP no loop device is to be had: {}", output.stderr());
            return None;
        }
        let device = PathBuf::from(output.stdout().trim());
        Some(Self { file, device })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// The device, for reading and writing.
    pub fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.device).unwrap()
    }

    /// The file below it.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("-d").arg(&self.device).status().unwrap();
    }
}

/// A tmpfs in the host's own mount namespace, until it is dropped.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one, with options of its own, such as its size.
    pub fn mount(path: &Path, options: &str) -> Self {
        let options = CString::new(options).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(path.to_owned())
    }

    /// One that is shared, as every mount is where systemd runs.
    pub fn shared(path: &Path) -> Self {
        let mounted = Self::mount(path, "");
        mount_change(path, MountPropagationFlags::SHARED).unwrap();
        mounted
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let done = unmount(&self.0, UnmountFlags::DETACH);
        assert!(done.is_ok() || thread::panicking(), "{done:?}");
    }
}
