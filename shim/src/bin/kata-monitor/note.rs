//! `end.json`: the last word of a monitor whose shim is gone.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::BorrowedFd,
    time::{SystemTime, UNIX_EPOCH},
};

use kata_engine_api::record::{Cause, EndNote, Ended};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// Name of the note in the sandbox directory.
const NAME: &str = "end.json";

/// Name under which it is written; a container has one monitor, so nobody else uses it.
const UNFINISHED: &str = ".end.json";

/// Exit code of a container that lost its sandbox.
pub const LOST: u8 = 137;

/// Writes the note so that a reader sees all of it or nothing.
pub fn write(directory: BorrowedFd<'_>, detail: Option<String>) -> io::Result<()> {
    let at = rfc3339(SystemTime::now());
    let note = EndNote { ended: Ended { code: LOST, cause: Cause::ShimLost, detail, at } };
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(directory, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?;
    let written = File::from(file).write_all(&serde_json::to_vec(&note)?);
    let published = written.and_then(|()| Ok(renameat(directory, UNFINISHED, directory, NAME)?));
    if published.is_err() {
        // The first error is the one that counts.
        unlinkat(directory, UNFINISHED, AtFlags::empty()).ok();
    }
    published
}

/// Time in UTC, to the millisecond.
fn rfc3339(time: SystemTime) -> String {
    // A clock before 1970 is as good as none.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, milliseconds) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that the leap day is the last of
/// its year, and months then follow a straight line: (153 m + 2) / 5 days come before month m.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_BEFORE_1970: u64 = 719_468;
    const FOUR_CENTURIES: u64 = 146_097;
    let days = days + DAYS_BEFORE_1970;
    let (era, day) = (days / FOUR_CENTURIES, days % FOUR_CENTURIES);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::rfc3339;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
