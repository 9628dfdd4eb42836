//! `state.json`: written whole and atomically, read by whoever asks.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use kata_engine_api::record::{RECORD_FILE as FILE, Record};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
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
    replace(directory, &text).map_err(RecordError::Write)
}

fn replace(directory: &OwnedFd, text: &[u8]) -> io::Result<()> {
    let replaced =
        draft(directory, text).and_then(|()| Ok(renameat(directory, DRAFT, directory, FILE)?));
    if replaced.is_err() {
        // The room that a part of it takes is what there is too little of.
        unlinkat(directory, DRAFT, AtFlags::empty()).ok();
    }
    replaced
}

fn draft(directory: &OwnedFd, text: &[u8]) -> io::Result<()> {
    let flags =
        OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut draft = File::from(openat(directory, DRAFT, flags, Mode::RUSR | Mode::WUSR)?);
    draft.write_all(text)?;
    draft.sync_data()
}

/// Reads the record of a sandbox directory; `None` when the sandbox never got one.
pub fn read(directory: &Path) -> Result<Option<Record>, RecordError> {
    match std::fs::read(directory.join(FILE)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(RecordError::Format),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(RecordError::Read(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{DRAFT, FILE, replace};

    #[test]
    fn a_record_that_cannot_be_written_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::File::open(directory.path()).unwrap().into();
        // Nothing takes the place of a directory.
        fs::create_dir(directory.path().join(FILE)).unwrap();
        replace(&open, b"{}").unwrap_err();
        assert!(!directory.path().join(DRAFT).exists());
    }
}
