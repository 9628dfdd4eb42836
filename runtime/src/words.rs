//! Small words of the command line, each parsed once.

use std::{path::PathBuf, str::FromStr, time::Duration};

/// `UID[:GID]`, by number: names belong to the container's own files, which the host does not trust.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserIds {
    pub uid: u32,
    /// As the container's own process has it when not given.
    pub gid: Option<u32>,
}

impl FromStr for UserIds {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let wrong = || {
                format!(
                    "{digits:?} is not a number; exec takes users and groups by number, as runc does"
                )
            };
            // "+1" would parse.
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten().ok_or_else(wrong)
        };
        match word.split_once(':') {
            Some((uid, gid)) => Ok(Self { uid: number(uid)?, gid: Some(number(gid)?) }),
            None => Ok(Self { uid: number(word)?, gid: None }),
        }
    }
}

/// A size: bytes, or KiB to PiB with a letter, and parts of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = word[number.len()..].to_ascii_lowercase();
        let power = match unit.as_str() {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 1,
            "m" | "mb" | "mi" | "mib" => 2,
            "g" | "gb" | "gi" | "gib" => 3,
            "t" | "tb" | "ti" | "tib" => 4,
            "p" | "pb" | "pi" | "pib" => 5,
            unit => return Err(format!("{unit:?} is not a unit: K, M, G, T or P")),
        };
        let bytes = scaled(number.strip_suffix(' ').unwrap_or(number), 1 << (10 * power));
        bytes
            .and_then(|bytes| i64::try_from(bytes).ok())
            .and_then(|bytes| u64::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| format!("{word:?} is not a size"))
    }
}

/// So many units, of which a part may be asked for, too: `1.5`.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    // Beyond that no unit has parts.
    const MOST_DIGITS: usize = 18;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || whole.len() + part.len() == 0 {
        return None;
    }
    let value = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse().ok() };
    let part = &part[..part.len().min(MOST_DIGITS)];
    let of_part = (1..=part.len()).try_fold(1_u128, |all, _| all.checked_mul(10))?;
    let whole: u128 = value(whole)?;
    let part: u128 = value(part)?;
    whole.checked_mul(unit)?.checked_add(part.checked_mul(unit)? / of_part)
}

/// CPU time, as so many microseconds of each [`Cpus::PERIOD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub u64);

impl Cpus {
    /// Microseconds.
    pub const PERIOD: u64 = 100_000;
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("{word:?} is not a number of CPUs from 0.01 to 65536");
        let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 5 {
            return Err(wrong());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        let fraction: u64 = format!("{fraction:0<5}").parse().map_err(|_| wrong())?;
        // The kernel takes no less than a millisecond.
        let quota = whole.checked_mul(Self::PERIOD).map(|quota| quota + fraction);
        quota
            .filter(|quota| (1000..=65536 * Self::PERIOD).contains(quota))
            .map(Self)
            .ok_or_else(wrong)
    }
}

/// A size, or -1 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub i64);

impl FromStr for Limit {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word == "-1" {
            return Ok(Self(-1));
        }
        // A size fits, as its parser has seen to.
        word.parse::<Bytes>().map(|bytes| Self(bytes.0.try_into().unwrap_or(i64::MAX)))
    }
}

/// A time between two events, as Go writes durations: numbers with `ns`, `us`, `ms`, `s`, `m` or `h`, one after the other.
pub fn interval(word: &str) -> Result<Duration, String> {
    nanoseconds(word)
        .and_then(|all| u64::try_from(all).ok())
        .filter(|all| *all > 0)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("{word:?} is not a time like 500ms, 5s or 1m30s"))
}

fn nanoseconds(word: &str) -> Option<u128> {
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut all, mut rest) = (0_u128, word);
    while !rest.is_empty() {
        let end = rest.find(|c| !is_of_number(c))?;
        let (number, after) = rest.split_at(end);
        let (unit, next) = after.split_at(after.find(is_of_number).unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1,
            // The letter of its own, and the Greek one.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3600 * 1_000_000_000,
            _ => return None,
        };
        all = all.checked_add(scaled(number, unit)?)?;
        rest = next;
    }
    Some(all)
}

/// `SOURCE:TARGET[:ro|rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeWord {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

impl FromStr for VolumeWord {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let parts: Vec<&str> = word.split(':').collect();
        let (source, target, read_only) = match parts[..] {
            [source, target] | [source, target, "rw"] => (source, target, false),
            [source, target, "ro"] => (source, target, true),
            _ => return Err(format!("{word:?} is not SOURCE:TARGET[:ro]")),
        };
        if source.is_empty() || !target.starts_with('/') {
            return Err(format!(
                "{word:?}: the source is a path of the host, the target an absolute path"
            ));
        }
        Ok(Self { source: source.into(), target: target.to_owned(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Bytes, Cpus, UserIds, VolumeWord, interval};

    #[test]
    fn users_are_numbers() {
        assert_eq!("1000".parse(), Ok(UserIds { uid: 1000, gid: None }));
        assert_eq!("1:2".parse(), Ok(UserIds { uid: 1, gid: Some(2) }));
        for word in ["", "root", "1:", ":1", "-1", "+1", "1:2:3", "4294967296"] {
            assert!(word.parse::<UserIds>().is_err(), "{word}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!("1024".parse(), Ok(Bytes(1024)));
        assert_eq!("64M".parse(), Ok(Bytes(64 << 20)));
        assert_eq!("2GiB".parse(), Ok(Bytes(2 << 30)));
        assert_eq!("1.5G".parse(), Ok(Bytes(3 << 29)));
        assert_eq!(".5k".parse(), Ok(Bytes(512)));
        assert_eq!("0.1M".parse(), Ok(Bytes(104_857)));
        assert_eq!("1 t".parse(), Ok(Bytes(1 << 40)));
        assert_eq!("2PB".parse(), Ok(Bytes(2 << 50)));
        assert_eq!("7.999999999999999999999b".parse(), Ok(Bytes(7)));
        for word in [
            "",
            "M",
            ".",
            ".G",
            "-1",
            "+1",
            "1.2.3G",
            "1E",
            "1e3",
            "1iB",
            "1 0",
            "9999P",
            "99999999999G",
            "18446744073709551615",
            "é",
            "1é",
        ] {
            assert!(word.parse::<Bytes>().is_err(), "{word}");
        }
    }

    #[test]
    fn times_may_have_several_parts() {
        for (word, milliseconds) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            (".5m", 30_000),
            ("1h1m1s500ms", 3_661_500),
            ("2000us", 2),
            ("3000µs", 3),
            ("1000000ns", 1),
        ] {
            assert_eq!(interval(word), Ok(Duration::from_millis(milliseconds)), "{word}");
        }
        for word in
            ["", "0s", "90", "1d", "1m 30s", "1m30", "-1s", "s", ".s", "1..5s", "99999999999h"]
        {
            assert!(interval(word).is_err(), "{word}");
        }
    }

    #[test]
    fn cpus_may_be_parts_of_one() {
        assert_eq!("2".parse(), Ok(Cpus(200_000)));
        assert_eq!("1.5".parse(), Ok(Cpus(150_000)));
        assert_eq!(".01".parse(), Ok(Cpus(1000)));
        for word in ["", ".", "0", "0.001", "-1", "1e3", "1.2.3", "65537", "99999999999999999999"] {
            assert!(word.parse::<Cpus>().is_err(), "{word}");
        }
    }

    #[test]
    fn volumes_have_two_ends() {
        let volume: VolumeWord = "a/b:/c:ro".parse().unwrap();
        assert_eq!((volume.source.to_str(), volume.target.as_str()), (Some("a/b"), "/c"));
        assert!(volume.read_only);
        for word in ["", "a", ":/b", "a:", "a:b", "a:/b:rx", "a:/b:ro:"] {
            assert!(word.parse::<VolumeWord>().is_err(), "{word}");
        }
    }
}
