//! A writer of cpio archives in the "newc" form, the one that the kernel unpacks.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. A header is the magic and 13 numbers
//! of eight hexadecimal digits; name and data are each padded to four bytes.

use std::io::{self, Write};

const MAGIC: &str = "070701";
const HEADER_LEN: usize = 110;
const ALIGN: usize = 4;
/// The kernel takes archives in pieces of a block; tools expect whole ones.
const BLOCK: usize = 512;
const TRAILER: &str = "TRAILER!!!";

/// What an entry is, with the bits of its mode that say so.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind<'a> {
    Directory,
    File(&'a [u8]),
    CharDevice { major: u32, minor: u32 },
}

impl<'a> Kind<'a> {
    fn mode_bits(self) -> u32 {
        match self {
            Self::Directory => 0o040_000,
            Self::File(_) => 0o100_000,
            Self::CharDevice { .. } => 0o020_000,
        }
    }

    fn data(self) -> &'a [u8] {
        match self {
            Self::File(data) => data,
            Self::Directory | Self::CharDevice { .. } => &[],
        }
    }

    fn device(self) -> (u32, u32) {
        match self {
            Self::CharDevice { major, minor } => (major, minor),
            Self::Directory | Self::File(_) => (0, 0),
        }
    }
}

/// Writes entries one after the other, and the trailer at the end.
pub(crate) struct Writer<W> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    /// Appends one entry, owned by root, of the epoch. `name` has no leading slash.
    pub(crate) fn entry(&mut self, name: &str, permissions: u32, kind: Kind<'_>) -> io::Result<()> {
        self.inode += 1;
        let links = if matches!(kind, Kind::Directory) { 2 } else { 1 };
        self.record(name, [self.inode, kind.mode_bits() | permissions, links], kind)
    }

    /// Ends the archive, filled up to a whole block.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.record(TRAILER, [0, 0, 1], Kind::Directory)?;
        self.pad_to(BLOCK)?;
        self.out.flush()
    }

    fn record(
        &mut self,
        name: &str,
        [inode, mode, links]: [u32; 3],
        kind: Kind<'_>,
    ) -> io::Result<()> {
        let data = kind.data();
        let (major, minor) = kind.device();
        let (size, name_size) = (length(data.len())?, length(name.len() + 1)?);
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name size, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::with_capacity(HEADER_LEN);
        header.push_str(MAGIC);
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad_to(ALIGN)?;
        self.put(data)?;
        self.pad_to(ALIGN)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    fn pad_to(&mut self, align: usize) -> io::Result<()> {
        const ZEROES: [u8; BLOCK] = [0; BLOCK];
        let missing = self.written.next_multiple_of(align) - self.written;
        self.put(&ZEROES[..missing])
    }
}

/// A length as the header holds it, or an error when it does not fit into eight digits.
fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
pub(crate) mod reader {
    //! An independent reading of the format, for tests.

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) name: String,
        pub(crate) fields: [u32; 13],
        pub(crate) data: Vec<u8>,
    }

    /// The entries before the trailer; panics where the archive is not well-formed.
    pub(crate) fn parse(archive: &[u8]) -> Vec<Entry> {
        let mut at = 0;
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[at..at + 6], b"070701", "magic at {at}");
            let digits = std::str::from_utf8(&archive[at + 6..at + 110]).unwrap();
            let field = |n: usize| u32::from_str_radix(&digits[n * 8..n * 8 + 8], 16).unwrap();
            let fields: [u32; 13] = std::array::from_fn(field);
            let (size, name_size) = (fields[6] as usize, fields[11] as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0), "name ends with NUL");
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let start = (at + 110 + name_size).next_multiple_of(4);
            at = (start + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert!(archive[at..].iter().all(|byte| *byte == 0), "nothing after the trailer");
                return entries;
            }
            entries.push(Entry { name, fields, data: archive[start..start + size].to_vec() });
        }
    }
}
