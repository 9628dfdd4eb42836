//! `end.json`: how the process ended, for the case that no shim is there to record it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::BorrowedFd,
};

use kata_engine_api::record::{Cause, END_FILE, EndNote, Ended};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// Name under which it is written; a container has one monitor, so nobody else uses it.
const UNFINISHED: &str = ".end.json";

/// Exit code of a container that lost its sandbox.
pub const LOST: u8 = 137;

/// Writes the note so that a reader sees all of it or nothing.
pub fn write(
    directory: BorrowedFd<'_>,
    code: u8,
    cause: Cause,
    detail: Option<String>,
) -> io::Result<()> {
    let note = EndNote { ended: Ended::new(code, cause, detail) };
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(directory, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?;
    let written = File::from(file).write_all(&serde_json::to_vec(&note)?);
    let published =
        written.and_then(|()| Ok(renameat(directory, UNFINISHED, directory, END_FILE)?));
    if published.is_err() {
        // The first error is the one that counts.
        unlinkat(directory, UNFINISHED, AtFlags::empty()).ok();
    }
    published
}
