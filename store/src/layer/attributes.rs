//! Owner, mode, extended attributes and times of what an entry has made.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use rustix::{
    fs::{
        AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat, setxattr,
        utimensat,
    },
    io::Errno,
};

use crate::tar::{Entry, Kind};

const CAPABILITY: &[u8] = b"security.capability";

/// Attributes that mean the same in every guest. Labels (`security.selinux`, `security.ima`) belong to the policy of the
/// host that packed the layer, `trusted.` to its overlays.
fn is_taken_over(name: &[u8]) -> bool {
    matches!(name, CAPABILITY | b"system.posix_acl_access" | b"system.posix_acl_default")
        || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
}

/// Sets everything of it but the time, in the order in which nothing undoes what was set before.
pub(super) fn set(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), (&'static str, io::Error)> {
    let failed = |what| move |error: Errno| (what, error.into());
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed("set its owner"))?;
    // Leads to the very thing, a link too, where other calls take no descriptor of a path.
    let path = itself(fd);
    if entry.kind != Kind::Symlink {
        chmod(&path, Mode::from_raw_mode(entry.mode)).map_err(failed("set its mode"))?;
    }
    for (name, value) in entry.attributes.iter().filter(|(name, _)| is_taken_over(name)) {
        match setxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            // The file system has none of its kind, and engines go on, too. A program without its capability would be another.
            Err(Errno::OPNOTSUPP) if name != CAPABILITY => {}
            set => set.map_err(failed("set an extended attribute"))?,
        }
    }
    Ok(())
}

/// Sets its time of modification; the time of access is the same.
pub(super) fn set_time(fd: BorrowedFd<'_>, modified: (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec: modified.0, tv_nsec: modified.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, itself(fd), &times, AtFlags::empty())
}

fn itself(fd: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}
