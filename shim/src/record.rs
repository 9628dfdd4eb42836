//! `state.json`: written whole and atomically, read by whoever asks.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use kata_engine_api::record::{RECORD_FILE as FILE, Record};
use rustix::fs::{Mode, OFlags, openat, renameat};
use thiserror::Error;

/// Where a new record is written before it takes the place of the old one.
const DRAFT: &str = "state.json.new";

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
    let flags =
        OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let draft = openat(directory, DRAFT, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| RecordError::Write(e.into()))?;
    let mut draft = File::from(draft);
    draft.write_all(&text).and_then(|()| draft.sync_data()).map_err(RecordError::Write)?;
    renameat(directory, DRAFT, directory, FILE).map_err(|e| RecordError::Write(e.into()))
}

/// Reads the record of a sandbox directory; `None` when the sandbox never got one.
pub fn read(directory: &Path) -> Result<Option<Record>, RecordError> {
    match std::fs::read(directory.join(FILE)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(RecordError::Format),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(RecordError::Read(e)),
    }
}
