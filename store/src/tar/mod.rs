//! Reads tar archives that a stranger wrote, from a stream.
//!
//! All dialects that container images come in: v7, ustar, GNU (long names, binary numbers, sparse files) and PAX (long
//! names, times, attributes, sparse files 0.0, 0.1 and 1.0). Whatever an archive says, no more than [`LONGEST_EXTENSION`]
//! of it is held in memory.

mod header;
mod pax;
mod reader;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::io;

pub(crate) use reader::{Archive, Source};

/// Most bytes of extended headers and long names before an entry: attributes have 64 KiB at most.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Most extents of a sparse file.
const MOST_EXTENTS: usize = 1 << 16;

/// Most extended attributes of an entry.
const MOST_ATTRIBUTES: usize = 256;

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    #[error("the checksum of a header is wrong: this is no tar archive, or a damaged one")]
    Checksum,
    #[error("the {0} of a header is no number that fits")]
    Field(&'static str),
    #[error("a PAX record is damaged")]
    Pax,
    #[error("the map of a sparse file is damaged")]
    Sparse,
    #[error("the extended headers of an entry have more than {LONGEST_EXTENSION} bytes")]
    LongExtension,
    #[error("an entry has more than {MOST_ATTRIBUTES} extended attributes")]
    Attributes,
    #[error("an entry has the unknown type {0:?}")]
    Kind(char),
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Data of a file: so many bytes of the archive belong at this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// One entry. Its data is read from the [`Archive`], extent by extent.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, u32),
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// With the holes.
    pub(crate) size: u64,
    pub(crate) extents: Vec<Extent>,
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}
