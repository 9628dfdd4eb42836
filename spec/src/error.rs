//! What is wrong with a configuration, said in one line.

use std::{io, path::PathBuf};

/// Why a configuration can't be run as it is.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file is not there, or can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No JSON; the cause names line and column.
    #[error("{document} is not JSON")]
    Syntax {
        /// The file, or what the document is.
        document: String,
        /// Where.
        source: serde_json::Error,
    },
    /// A field that nobody could apply: of the wrong type, missing, or at odds with another.
    #[error("{document}: {field}: {why}")]
    Field {
        /// The file, or what the document is.
        document: String,
        /// Path of the field, as in `process.user.uid`.
        field: String,
        /// What it should be.
        why: String,
    },
    /// A field that is right, but that Kata does not apply.
    #[error("{document}: {field}: refused: {why}")]
    Refused {
        /// The file, or what the document is.
        document: String,
        /// Path of the field.
        field: String,
        /// Why not.
        why: String,
    },
    /// A path on the host that a field names.
    #[error("{document}: {field}: {}", path.display())]
    HostPath {
        /// The file, or what the document is.
        document: String,
        /// Path of the field.
        field: String,
        /// The path that was looked at.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a program can't be started, in the words that engines look for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A bare name that is in no directory of PATH.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath {
        /// The name.
        name: String,
    },
    /// A path at which nothing is.
    #[error("exec: {name:?}: stat {name}: no such file or directory")]
    NotFound {
        /// The path, as in `args`.
        name: String,
    },
    /// A path without an execute bit, or of a directory.
    #[error("exec: {name:?}: permission denied")]
    NotExecutable {
        /// The path, as in `args`.
        name: String,
    },
    /// The host could not look.
    #[error("exec: {name:?}: stat {name}")]
    Look {
        /// The path, as in `args`.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl ProgramError {
    /// 127 when there is no such program, 126 when it can't be executed: what shells and engines use.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotInPath { .. } | Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::Look { .. } => 126,
        }
    }
}
