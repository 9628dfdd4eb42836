//! Layers: from a blob to a tree.

mod account;
mod apply;
mod attributes;
mod budget;
mod compression;
mod place;
#[cfg(test)]
mod tests;

use std::io;

pub use self::budget::Budget;
pub(crate) use self::{apply::apply, compression::Plain};
use crate::{Digest, tar::TarError};

/// Why a layer can't be applied. Paths are the layer's own, escaped.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive.
    #[error("cannot read it: {0}")]
    Archive(String),
    /// Something about one entry.
    #[error("{path}: cannot {attempted}")]
    Entry {
        /// Path of the entry.
        path: String,
        /// What was attempted.
        attempted: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// An entry that no layer may have.
    #[error("{path}: {why}")]
    Refused {
        /// Path of the entry.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// It is not what the configuration says.
    #[error("the configuration names another layer: this one unpacks to {0}")]
    Sum(Digest),
    /// More entries than an image may have.
    #[error("it has more entries than are allowed")]
    Entries,
    /// The file system's free space would not do.
    #[error("there is no room for it: {0} MiB are free, less a reserve")]
    Room(u64),
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        Self::Archive(error.to_string())
    }
}

/// A path of a layer, for a message.
fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(&path[..path.len().min(LONGEST)]);
    let dots = if path.len() > LONGEST { "..." } else { "" };
    format!("{}{dots}", text.escape_debug())
}
