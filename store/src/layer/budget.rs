//! What an image may take: entries, and room.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::fs::fstatvfs;

use super::LayerError;

/// Entries of all layers together.
const ENTRIES: u64 = 2_000_000;

/// Left free for everybody else.
const RESERVE: u64 = 256 << 20;

/// The least that an entry takes on a disk.
pub(super) const BLOCK: u64 = 4096;

/// Room that is left for an image.
#[derive(Debug, Clone)]
pub struct Budget {
    entries: u64,
    bytes: u64,
    /// Bytes at the beginning.
    room: u64,
}

impl Budget {
    /// What the file system of a directory has.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn of(directory: impl AsFd) -> io::Result<Self> {
        let room = fstatvfs(directory)?;
        Ok(Self::new(ENTRIES, (room.f_bavail * room.f_frsize).saturating_sub(RESERVE)))
    }

    /// So many entries and bytes.
    pub fn new(entries: u64, bytes: u64) -> Self {
        Self { entries, bytes, room: bytes }
    }

    /// Bytes that there were at the beginning.
    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    /// Takes an entry with so many bytes of data.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.entries = self.entries.checked_sub(1).ok_or(LayerError::Entries)?;
        let blocks = bytes.div_ceil(BLOCK).saturating_add(1).saturating_mul(BLOCK);
        let room = || LayerError::Room(self.room >> 20);
        self.bytes = self.bytes.checked_sub(blocks).ok_or_else(room)?;
        Ok(())
    }

    /// Ends a stream that is longer than all that is left could need: one that unpacks to nothing for ever.
    pub(crate) fn bound<R: Read>(&self, source: R) -> Bounded<R> {
        Bounded { source, left: self.bytes.saturating_mul(2).saturating_add(1 << 20) }
    }
}

/// A stream with an end.
pub(crate) struct Bounded<R> {
    source: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        let left = self.left.checked_sub(length as u64);
        self.left =
            left.ok_or_else(|| io::Error::other("it unpacks to more than there is room for"))?;
        Ok(length)
    }
}
