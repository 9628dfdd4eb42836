//! Times as records, logs and engines write them: RFC 3339 in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds, as Go writes them; engines compare these strings with their own.
pub fn rfc3339(time: SystemTime) -> String {
    // A clock before 1970 is as good as none.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        since.subsec_nanos(),
    )
}

/// The time that [`rfc3339`] wrote; `None` for any other form.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.')?;
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(by).map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(day, '-')?, numbers(time, ':')?);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && fraction.len() == 9;
    if !in_range {
        return None;
    }
    // The day that has this date, found from below: a year has at least 365 days, a month at least 28.
    let mut days = (year - 1970) * 365 + (month - 1) * 28 + (day - 1);
    while date(days) < (year, month, day) {
        days += 1;
    }
    if date(days) != (year, month, day) {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::new(seconds, fraction.parse().ok()?))
}

/// Gregorian year, month and day of a day since 1970-01-01.
///
/// Whole 400-year cycles are equal, and so are centuries but the last, four-year spans but the last of a century, and
/// years but the last of a span: each is divided off in turn.
fn date(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    const CENTURY: u64 = 36_524;
    const SPAN: u64 = 1461;
    // From 2000-03-01 backwards to a cycle's first day: 1600-03-01 lies 135,080 days before 1970-01-01.
    let days = days + 135_080;
    let (cycles, rest) = (days / CYCLE, days % CYCLE);
    let centuries = (rest / CENTURY).min(3);
    let rest = rest - centuries * CENTURY;
    let (spans, rest) = (rest / SPAN, rest % SPAN);
    let years = (rest / 365).min(3);
    let mut day = rest - years * 365;
    // Years of this reckoning begin in March, so that a leap day is their last.
    let lengths = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let month = month as u64;
    let year = 1600 + cycles * 400 + centuries * 100 + spans * 4 + years;
    if month < 10 { (year, month + 3, day + 1) } else { (year + 1, month - 9, day + 1) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{parse_rfc3339, rfc3339};

    #[test]
    fn what_was_written_is_read() {
        for seconds in [0, 68_169_600, 951_782_399, 1_735_689_599, 4_107_542_400] {
            let time = UNIX_EPOCH + Duration::new(seconds, 7);
            assert_eq!(parse_rfc3339(&rfc3339(time)), Some(time));
        }
        for strange in ["", "2024-02-30T00:00:00.000000000Z", "2024-01-01T00:00:00Z", "yesterday"] {
            assert_eq!(parse_rfc3339(strange), None, "{strange}");
        }
    }

    #[test]
    fn well_known_moments() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (68_169_600, "1972-02-29T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let late = UNIX_EPOCH + Duration::new(1, 5);
        assert_eq!(rfc3339(late), "1970-01-01T00:00:01.000000005Z");
    }
}
