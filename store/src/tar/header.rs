//! One header block: fixed fields, in the three dialects that are about (v7, ustar, GNU).

use super::{Kind, TarError};

/// Size of everything in an archive.
pub(super) const BLOCK: usize = 512;

/// A block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, TarError> {
        let header = Self(block);
        let stated = number(header.field(148, 8)).ok_or(TarError::Checksum)?;
        // The field itself counts as spaces. Old programs summed signed characters.
        let bytes = || {
            block.iter().enumerate().map(|(at, byte)| match at {
                148..156 => b' ',
                _ => *byte,
            })
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stated != unsigned && stated != signed {
            return Err(TarError::Checksum);
        }
        Ok(header)
    }

    fn field(&self, at: usize, length: usize) -> &'a [u8] {
        &self.0[at..at + length]
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// Name as far as it fits into the block.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = text(self.field(345, 155));
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        self.unsigned("mode", 100, 8)
    }

    pub(super) fn uid(&self) -> Result<u32, TarError> {
        self.unsigned("uid", 108, 8)
    }

    pub(super) fn gid(&self) -> Result<u32, TarError> {
        self.unsigned("gid", 116, 8)
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        let size = number(self.field(124, 12)).and_then(|size| u64::try_from(size).ok());
        size.ok_or(TarError::Field("size"))
    }

    pub(super) fn modified(&self) -> Result<i64, TarError> {
        number(self.field(136, 12)).ok_or(TarError::Field("mtime"))
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        Ok((self.unsigned("devmajor", 329, 8)?, self.unsigned("devminor", 337, 8)?))
    }

    fn unsigned(&self, name: &'static str, at: usize, length: usize) -> Result<u32, TarError> {
        let number = number(self.field(at, length)).and_then(|number| u32::try_from(number).ok());
        number.ok_or(TarError::Field(name))
    }

    /// Of GNU's old sparse files: the pairs in this block.
    pub(super) fn sparse_pairs(&self) -> Result<Vec<(u64, u64)>, TarError> {
        sparse_pairs(self.field(386, 96))
    }

    /// Of GNU's old sparse files: whether a block with more pairs follows.
    pub(super) fn has_more_pairs(&self) -> bool {
        self.0[482] != 0
    }

    /// Of GNU's old sparse files: the size with the holes.
    pub(super) fn real_size(&self) -> Result<u64, TarError> {
        let size = number(self.field(483, 12)).and_then(|size| u64::try_from(size).ok());
        size.ok_or(TarError::Field("realsize"))
    }

    pub(super) fn kind(&self, name: &[u8]) -> Result<Kind, TarError> {
        Ok(match self.flag() {
            // Before there was a flag for directories, a slash was it.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Kind(char::from(other))),
        })
    }

    /// Whether data follows. Some programs give links and directories a size that means nothing; as in Go's reader, which
    /// engines use, only a flag for files makes a directory with data.
    pub(super) fn has_data(&self, kind: Kind) -> bool {
        kind == Kind::File || matches!(self.flag(), b'0' | b'7')
    }
}

/// Pairs of offset and length, as GNU's old sparse headers have them; an empty one ends the list.
pub(super) fn sparse_pairs(field: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
    let pairs = field.chunks_exact(24).take_while(|pair| pair[0] != 0);
    let side = |field| number(field).and_then(|number| u64::try_from(number).ok());
    pairs
        .map(|pair| Some((side(&pair[..12])?, side(&pair[12..])?)))
        .collect::<Option<_>>()
        .ok_or(TarError::Sparse)
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits between spaces and NULs, or GNU's binary form. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, big-endian; the bit that marks the form is the sign's neighbour.
        let start: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let head = (start << 6) | i128::from(first & 0x3f);
        let value = field[1..].iter().try_fold(head, |value, byte| {
            value.checked_mul(256).map(|value| value | i128::from(*byte))
        });
        return i64::try_from(value?).ok();
    }
    let is_filler = |byte: &u8| *byte == b' ' || *byte == 0;
    let begin = field.iter().position(|byte| !is_filler(byte)).unwrap_or(field.len());
    let digits = &field[begin..];
    let end = digits.iter().position(is_filler).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0009\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(&[0xbf; 12]), None);
        assert_eq!(number(b"777777777777777777777777"), None);
    }
}
