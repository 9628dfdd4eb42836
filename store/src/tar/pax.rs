//! PAX records: what a header block has no room for.

use super::{MOST_ATTRIBUTES, MOST_EXTENTS, TarError};

/// What the records before an entry say about it.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Seconds and nanoseconds.
    pub(super) modified: Option<(i64, u32)>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseWords,
}

/// What `GNU.sparse.*` says, in its three versions.
#[derive(Debug, Default)]
pub(super) struct SparseWords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Version 1.0: the list stands before the data.
    pub(super) list_in_data: bool,
    /// Versions 0.0 and 0.1: the list itself, offsets and lengths in turn.
    pub(super) list: Vec<u64>,
}

impl SparseWords {
    pub(super) fn is_sparse(&self) -> bool {
        self.list_in_data || !self.list.is_empty()
    }
}

impl Extensions {
    /// Adds the records of one extended header; the last word on a key counts.
    pub(super) fn read(&mut self, mut text: &[u8]) -> Result<(), TarError> {
        while !text.is_empty() {
            // Some programs pad with zeros.
            if text.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let (key, value, rest) = record(text).ok_or(TarError::Pax)?;
            self.take(key, value)?;
            text = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let own = |value: &[u8]| (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = own(value),
            b"linkpath" => self.link = own(value),
            b"size" => self.size = optional(value)?,
            b"uid" => self.uid = optional(value)?,
            b"gid" => self.gid = optional(value)?,
            b"mtime" => self.modified = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.name" => self.sparse.name = own(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = optional(value)?,
            b"GNU.sparse.major" => self.sparse.list_in_data = value == b"1",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.list.push(decimal(value).ok_or(TarError::Sparse)?);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                self.sparse.list = numbers.collect::<Option<_>>().ok_or(TarError::Sparse)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.retain(|(other, _)| other != name);
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        if self.attributes.len() > MOST_ATTRIBUTES {
            return Err(TarError::Attributes);
        }
        if self.sparse.list.len() > 2 * MOST_EXTENTS { Err(TarError::Sparse) } else { Ok(()) }
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(21).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..space])?).ok()?;
    let body = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &text[length..]))
}

/// A number; an empty value takes back what was said before.
fn optional<T: TryFrom<u64>>(value: &[u8]) -> Result<Option<T>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = decimal(value).and_then(|number| T::try_from(number).ok());
    number.map(Some).ok_or(TarError::Pax)
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    // "+1" would parse.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// Seconds with a fraction, of any length, before or after 1970.
fn time(value: &[u8]) -> Result<(i64, u32), TarError> {
    let text = std::str::from_utf8(value).map_err(|_| TarError::Pax)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| TarError::Pax)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TarError::Pax);
    }
    let nanoseconds = format!("{fraction:0<9}")[..9].parse().map_err(|_| TarError::Pax)?;
    match whole.starts_with('-') && nanoseconds > 0 {
        // The nanoseconds of the system count forward.
        true => Ok((seconds.checked_sub(1).ok_or(TarError::Pax)?, 1_000_000_000 - nanoseconds)),
        false => Ok((seconds, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Extensions, time};

    #[test]
    fn records_say_what_the_header_could_not() {
        let mut extensions = Extensions::default();
        let text = b"12 path=a/b\n13 uid=70000\n40 SCHILY.xattr.security.capability=\x01\0\n\n";
        extensions.read(text).unwrap();
        assert_eq!(extensions.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extensions.uid, Some(70_000));
        assert_eq!(extensions.attributes.len(), 1);
    }

    #[test]
    fn a_broken_record_is_refused() {
        for text in
            [&b"99 path=a\n"[..], b"x", b"6 path\n", b"3 a\n", b"0 a=b\n", b"9 uid=-1\n", b"5 a=b"]
        {
            assert!(Extensions::default().read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_may_lie_before_1970() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"12.1234567899").unwrap(), (12, 123_456_789));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert!(time(b"1.-5").is_err() && time(b"").is_err());
    }
}
