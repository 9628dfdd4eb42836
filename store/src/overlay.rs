//! Overlays that nobody else sees: mounted in the mount namespace of the thread that needs them.
//!
//! A thread that is killed, with its process, takes its namespace along, and all that was mounted there.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount},
};

/// The writable part of an overlay.
pub(crate) struct Writable<'a> {
    pub(crate) upper: BorrowedFd<'a>,
    pub(crate) work: BorrowedFd<'a>,
}

/// An overlay; it is unmounted when this is dropped.
pub(crate) struct Overlay<'a> {
    point: &'a Path,
}

impl<'a> Overlay<'a> {
    /// Mounts layers, the uppermost first. All of them were opened in this thread's namespace.
    pub(crate) fn mount(
        point: &'a Path,
        lower: &[BorrowedFd<'_>],
        writable: Option<&Writable<'_>>,
    ) -> io::Result<Self> {
        // Descriptors are short, and a mount has room for one page of options.
        let path = |fd: &BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let lower: Vec<String> = lower.iter().map(path).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some(Writable { upper, work }) = writable {
            let (upper, work) = (path(upper), path(work));
            options.push_str(&format!(",upperdir={upper},workdir={work}"));
            // A layer must not depend on how the kernel that mounts it later is configured.
            options.push_str(",index=off,metacopy=off,redirect_dir=off");
        }
        let options = CString::new(options).map_err(io::Error::other)?;
        let flags = match writable {
            Some(_) => MountFlags::NODEV | MountFlags::NOSUID,
            None => MountFlags::NODEV | MountFlags::NOSUID | MountFlags::RDONLY,
        };
        mount("kata-layers", point, "overlay", flags, options.as_c_str())?;
        Ok(Self { point })
    }

    /// A descriptor of the overlay that stays good after it is unmounted, and holds it as long.
    pub(crate) fn detached(&self) -> io::Result<OwnedFd> {
        detached(self.point)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        // The namespace ends with its thread, if this does not end the mount.
        unmount(self.point, UnmountFlags::DETACH).ok();
    }
}

/// A mount tree of its own, of what is at a path.
pub(crate) fn detached(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

/// The path of an open directory, in the namespace where it was opened.
pub(crate) fn path_of(directory: impl AsFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()).into()
}
