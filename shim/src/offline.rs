//! The other door to a sandbox directory: what can be said and done when no shim answers.

use std::{fs, io, path::Path};

use anyhow::Context;
use kata_engine_api::record::{Cause, END_FILE, EndNote, Ended, Record, Status};
use kata_sandbox::{ledger, step::Steps};

use crate::{process::LOST, record};

/// Prints the record as it must be now that the shim is gone.
pub fn state(directory: &Path) -> anyhow::Result<()> {
    let record = settled(directory)?.with_context(|| {
        format!("{} holds no container that was ever created", directory.display())
    })?;
    serde_json::to_writer_pretty(io::stdout(), &record).context("print the record")?;
    Ok(())
}

/// Takes away everything that the ledger names, then the directory. Succeeds when it is gone already.
pub fn delete(directory: &Path) -> anyhow::Result<()> {
    ledger::replay(directory, &Steps::from_environment())
        .with_context(|| format!("clean up after {}", directory.display()))?;
    remove(directory).with_context(|| format!("remove {}", directory.display()))
}

/// Removes a directory of a sandbox or a container, which need not be there. Monitors of a dead shim note in theirs how their
/// containers ended, each once: what comes into it meanwhile is removed as well.
pub fn remove(directory: &Path) -> io::Result<()> {
    loop {
        match fs::remove_dir_all(directory) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => return Ok(()),
        }
    }
}

/// Takes away everything that the ledger names, and leaves what `state` and `delete` go by.
pub fn repair(directory: &Path) -> anyhow::Result<()> {
    ledger::replay(directory, &Steps::from_environment())
        .with_context(|| format!("clean up after {}", directory.display()))?;
    match fs::remove_file(directory.join(ledger::FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("remove the ledger"),
        _ => Ok(()),
    }
}

/// The record in a directory, as it must be now that its shim is gone.
pub fn settled(directory: &Path) -> anyhow::Result<Option<Record>> {
    let Some(mut record) = record::read(directory)? else { return Ok(None) };
    if record.status != Status::Stopped {
        record.status = Status::Stopped;
        record.ended = Some(read_end(directory)?);
    }
    record.pid = 0;
    Ok(Some(record))
}

/// The monitor's note; a monitor that died with its shim has left none.
fn read_end(directory: &Path) -> anyhow::Result<Ended> {
    match fs::read(directory.join(END_FILE)) {
        Ok(text) => {
            let note: EndNote = serde_json::from_slice(&text).context("read the monitor's note")?;
            Ok(note.ended)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(Ended::new(LOST, Cause::ShimLost, None))
        }
        Err(e) => Err(e).context("read the monitor's note"),
    }
}
