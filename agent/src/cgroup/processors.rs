//! The guest's processors: the VM has as many as it may ever need, and those that it does need are up.

use std::{fs, io, path::PathBuf};

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
const DIRECTORY: &str = "/sys/devices/system/cpu";

/// How many the guest may have.
pub fn possible() -> u32 {
    // "0-3": there are no holes in what a VMM makes.
    let list = fs::read_to_string(format!("{DIRECTORY}/possible")).unwrap_or_default();
    let last = list.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<u32>().ok());
    last.map_or(1, |last| last + 1)
}

/// Brings processors up until there are `count`; none is ever taken down. May take seconds where the host has none to spare.
pub fn bring_up(count: u32) -> io::Result<()> {
    for number in 1..count.min(possible()) {
        let file: PathBuf = [DIRECTORY, &format!("cpu{number}"), "online"].iter().collect();
        if fs::read_to_string(&file)?.trim() != "1" {
            // The kernel waits for a processor's first sign of life for so long only (EIO): one that its host does not let run,
            // or that was just stopped with all of the VM, comes up at the second call.
            fs::write(&file, "1").or_else(|error| match error.raw_os_error() {
                Some(EIO) => fs::write(&file, "1"),
                _ => Err(error),
            })?;
        }
    }
    Ok(())
}
