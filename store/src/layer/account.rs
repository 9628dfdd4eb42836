//! What a layer takes of an image's budget.
//!
//! A layer has on the disk what its entries say, and what is copied for it: an overlay copies a file of a lower layer before it
//! links to it, and a directory, with all those above it, before something in it is changed. So the layer's own files and
//! directories are known by their identity, which no path could tell: links lead to the same file by other names.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, Stat, fstat, openat},
    io::Errno,
};

use super::{Budget, LayerError, budget::BLOCK};
use crate::tar::{Entry, Extent};

/// Why a step fails that takes of the budget.
#[derive(Debug)]
pub(super) enum Failure {
    System(Errno),
    Budget(LayerError),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Budget(error)
    }
}

/// The budget, and what was taken of it already.
pub(super) struct Account<'a> {
    budget: &'a mut Budget,
    /// By device and inode.
    own: HashSet<(u64, u64)>,
}

impl<'a> Account<'a> {
    /// The root of the tree is there already.
    pub(super) fn new(root: BorrowedFd<'_>, budget: &'a mut Budget) -> Result<Self, Errno> {
        let stat = fstat(root)?;
        Ok(Self { budget, own: HashSet::from([(stat.st_dev, stat.st_ino)]) })
    }

    /// Takes an entry, with its data and attributes.
    pub(super) fn take(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let attributes = entry.attributes.iter().map(|(name, value)| name.len() + value.len());
        let attributes = attributes.sum::<usize>() as u64;
        self.budget.take(data(&entry.extents).saturating_add(attributes))
    }

    /// Takes a directory that has no entry.
    pub(super) fn take_implied(&mut self) -> Result<(), LayerError> {
        self.budget.take(0)
    }

    /// Notes what was made, and taken.
    pub(super) fn made(&mut self, stat: &Stat) {
        self.own.insert((stat.st_dev, stat.st_ino));
    }

    /// Takes what is copied before something is made in a directory.
    pub(super) fn change(&mut self, directory: BorrowedFd<'_>) -> Result<(), Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut above: Option<OwnedFd> = None;
        loop {
            let here = above.as_ref().map_or(directory, AsFd::as_fd);
            let stat = fstat(here)?;
            if !self.own.insert((stat.st_dev, stat.st_ino)) {
                return Ok(());
            }
            self.budget.take(0)?;
            above = Some(openat(here, "..", flags, Mode::empty())?);
        }
    }

    /// Takes what is copied before something that is there gets another name.
    pub(super) fn link(&mut self, parent: BorrowedFd<'_>, stat: &Stat) -> Result<(), Failure> {
        self.change(parent)?;
        if !self.own.contains(&(stat.st_dev, stat.st_ino)) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            // The kernel counts in 512 bytes, whatever the file system does.
            self.budget.take(blocks.saturating_mul(512))?;
        }
        Ok(())
    }
}

/// Bytes of all blocks that have data: a few bytes between two holes take a whole one.
fn data(extents: &[Extent]) -> u64 {
    let (mut blocks, mut counted) = (0u64, 0);
    for extent in extents.iter().filter(|extent| extent.length > 0) {
        let first = counted.max(extent.offset / BLOCK);
        counted = (extent.offset + extent.length).div_ceil(BLOCK);
        blocks += counted - first;
    }
    blocks.saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::data;
    use crate::tar::Extent;

    #[test]
    fn a_block_counts_as_a_whole_and_once() {
        let bytes = |extents: &[(u64, u64)]| {
            let extent =
                |(offset, length): &(u64, u64)| Extent { offset: *offset, length: *length };
            data(&extents.iter().map(extent).collect::<Vec<_>>())
        };
        assert_eq!(bytes(&[(0, 0)]), 0);
        assert_eq!(bytes(&[(0, 4096), (4096, 1)]), 8192);
        assert_eq!(bytes(&[(0, 1), (512, 1), (4095, 1), (4096, 0)]), 4096);
        assert_eq!(bytes(&[(4095, 2), (1 << 30, 1), (2 << 30, 0)]), 3 * 4096);
    }
}
