//! `end.json`: how the process ended, for the case that no shim is there to record it.

use std::{io, os::fd::BorrowedFd, path::Path};

use kata_engine_api::record::{Cause, END_FILE, EndNote, Ended};
use kata_sys::replacement::replace;
use rustix::fs::Mode;

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
    let mode = Mode::RUSR | Mode::WUSR;
    replace(directory, Path::new(END_FILE), mode, &serde_json::to_vec(&note)?)
}
