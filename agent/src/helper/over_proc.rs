//! What may be mounted on a proc file system of the container.
//!
//! The host has looked at the names of mount points (`check_place` in `kata-spec`); only here is it known where the image's links
//! lead, a volume at `/data` to `/proc/sys`. What a program finds in `/proc` is to be the kernel's word.

use std::{os::fd::OwnedFd, path::Path};

use kata_sys::proc_files::{COVERING, SHOWN_OTHERWISE};
use rustix::fs::{PROC_SUPER_MAGIC, fstat, fstatfs};

use super::paths::Root;
use crate::order::{Failure, Step};

/// Fails if what is mounted at `destination` may not be on `place`, which is what that name led to.
///
/// `kind` is the file system to be made, or none for a bind mount.
pub fn check(
    root: &Root,
    place: &OwnedFd,
    destination: &str,
    kind: Option<&str>,
) -> Result<(), Failure> {
    if kind.is_some_and(|kind| COVERING.contains(&kind)) {
        return Ok(());
    }
    let looking = || format!("look at {destination}");
    if fstatfs(place).step(looking)?.f_type != PROC_SUPER_MAGIC {
        return Ok(());
    }
    let here = fstat(place).step(looking)?;
    let is_here = |name: &&str| {
        let other = root.find(&Path::new("/proc").join(name)).and_then(fstat);
        other.is_ok_and(|other| (other.st_dev, other.st_ino) == (here.st_dev, here.st_ino))
    };
    if SHOWN_OTHERWISE.iter().any(is_here) {
        return Ok(());
    }
    Err(Failure::invalid(format!("{destination} can't be covered: it is of /proc")))
}
