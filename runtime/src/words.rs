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

/// A size: bytes, or KiB, MiB or GiB with a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match word[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            unit => return Err(format!("{unit:?} is not a unit: K, M or G")),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or_else(|| format!("{word:?} is not a size"))
    }
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

/// A time between two events: a number with ms, s or m.
pub fn interval(word: &str) -> Result<Duration, String> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &word[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match number {
        Some(milliseconds @ 1..) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(format!("{word:?} is not a time like 500ms, 5s or 1m")),
    }
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
    use super::{Bytes, Cpus, UserIds, VolumeWord};

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
        for word in ["", "M", "-1", "1.5G", "1T", "99999999999G", "18446744073709551615", "é"] {
            assert!(word.parse::<Bytes>().is_err(), "{word}");
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
