//! The files of a share that are volumes by themselves: `/etc/hosts`, `/etc/resolv.conf`, a file by `subPath`.
//!
//! An engine writes such a file anew while a container runs and tells nobody, and whoever reads it next is to read all of it. So
//! the guest may not take its size for granted, not even for the second that it may of what is in a directory.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    sync::{Mutex, MutexGuard, PoisonError},
};

use virtiofsd::{filesystem::Entry, fuse};

/// The inode that the guest was told of last for each of these files.
///
/// By names, which are the host's: a guest that looks up and forgets for ever gets no more of them. Each is a volume's number: whoever
/// calls has refused the paths that lead there, and where volumes are attached a guest makes no names of its own.
#[derive(Debug, Default)]
pub struct Singles(Mutex<HashMap<CString, u64>>);

impl Singles {
    /// The guest is about to be told that `name` in `parent` is `entry`. True when that is a volume by itself.
    pub fn told(&self, parent: u64, name: &CStr, entry: &Entry) -> bool {
        let single = parent == fuse::ROOT_ID && entry.attr.mode & libc::S_IFMT != libc::S_IFDIR;
        if single {
            self.inodes().insert(name.to_owned(), entry.inode);
        }
        single
    }

    /// True for an inode that is a volume by itself.
    pub fn has(&self, inode: u64) -> bool {
        self.inodes().values().any(|single| *single == inode)
    }

    /// The guest forgets an inode; if that is for a part of the times that it was told, it is late by a second from now on.
    pub fn forgotten(&self, inode: u64) {
        self.inodes().retain(|_, single| *single != inode);
    }

    /// How many are known.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.inodes().len()
    }

    fn inodes(&self) -> MutexGuard<'_, HashMap<CString, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
