//! `state.json`: written whole and atomically, read by whoever asks.

use std::{io, os::fd::OwnedFd, path::Path};

use kata_engine_api::record::{RECORD_FILE as FILE, Record};
use kata_sys::replacement::replace;
use rustix::fs::Mode;
use thiserror::Error;

/// Why the record was not written or read.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RecordError {
    #[error("write {FILE}")]
    Write(#[source] io::Error),
    #[error("read {FILE}")]
    Read(#[source] io::Error),
    #[error("{FILE} is no record of this version of Kata")]
    Format(#[source] serde_json::Error),
}

/// Replaces the record: a reader sees the old one or the new one, whole.
pub fn write(directory: &OwnedFd, record: &Record) -> Result<(), RecordError> {
    let text = serde_json::to_vec_pretty(record).map_err(RecordError::Format)?;
    let mode = Mode::RUSR | Mode::WUSR;
    replace(directory, Path::new(FILE), mode, &text).map_err(RecordError::Write)
}

/// Reads the record of a sandbox directory; `None` when the sandbox never got one.
pub fn read(directory: &Path) -> Result<Option<Record>, RecordError> {
    match std::fs::read(directory.join(FILE)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(RecordError::Format),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(RecordError::Read(e)),
    }
}
