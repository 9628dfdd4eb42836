//! Root file systems for containers.

use std::{
    env,
    ffi::CString,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A root file system of one test's own.
#[derive(Debug)]
pub struct Root {
    directory: tempfile::TempDir,
    /// Where the tree is mounted; none when it is the directory itself.
    mounted: Option<PathBuf>,
}

impl Root {
    /// An overlay mount over `lower`, as engines make one of an image's layers.
    pub fn overlay(lower: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (upper, work) = (directory.path().join("upper"), directory.path().join("work"));
        let merged = directory.path().join("merged");
        for path in [&upper, &work, &merged] {
            fs::create_dir(path).unwrap();
        }
        let options = [("lowerdir=", lower), (",upperdir=", &upper), (",workdir=", &work)];
        let options = options.map(|(name, path)| [name.as_bytes(), path.as_os_str().as_bytes()]);
        let options = CString::new(options.concat().concat()).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .unwrap();
        Self { directory, mounted: Some(merged) }
    }

    /// Its path, as an argument.
    pub fn path(&self) -> &str {
        self.mounted.as_deref().unwrap_or(self.directory.path()).to_str().unwrap()
    }

    /// Host path of a file in it.
    pub fn file(&self, path: &str) -> PathBuf {
        Path::new(self.path()).join(path.trim_start_matches('/'))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(path) = &self.mounted {
            unmount(path, UnmountFlags::DETACH).unwrap();
        }
    }
}

/// A copy of the busybox root, or `None` (and a word on why) where there is none.
pub fn busybox() -> Option<Root> {
    let from = named_by("KATA_TEST_ROOT_BUSYBOX")?;
    let directory = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(directory.path()).status();
    assert!(copied.unwrap().success());
    Some(Root { directory, mounted: None })
}

/// An overlay of the Debian root (python3, apt, iproute2, nginx, redis), or `None` where there is none.
pub fn debian() -> Option<Root> {
    Some(Root::overlay(&named_by("KATA_TEST_ROOT_DEBIAN")?))
}

fn named_by(variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("SKIP {variable} is not set; run cargo xtask test");
    }
    path
}
