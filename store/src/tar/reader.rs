//! From blocks to entries.

use std::io::{self, Read};

use super::{
    Entry, Extent, Kind, LONGEST_EXTENSION, MOST_EXTENTS, TarError,
    header::{BLOCK, Header, sparse_pairs},
    pax::{Extensions, decimal},
};

/// Where an archive comes from.
pub(crate) trait Source: Read {
    /// Passes over so many bytes.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.take(count), &mut io::sink())?;
        if passed < count { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// An archive in the midst of being read.
pub(crate) struct Archive<S> {
    source: S,
    /// Bytes that were taken from the source.
    position: u64,
    /// Data of the current entry that was not read yet.
    data_left: u64,
    /// Filler behind it.
    padding: u64,
}

impl<S: Source> Archive<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { source, position: 0, data_left: 0, padding: 0 }
    }

    /// Where the current entry's data stands in the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn into_inner(self) -> S {
        self.source
    }

    /// The next entry; `None` at the end. What was not read of the last one is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        let mut room = LONGEST_EXTENSION;
        loop {
            self.pass_over()?;
            let mut block = [0; BLOCK];
            // Two blocks of zeros end an archive; some programs write one or none.
            if !self.fill_or_end(&mut block)? || block == [0; BLOCK] {
                return Ok(None);
            }
            let header = Header::parse(&block)?;
            match header.flag() {
                b'x' => {
                    let text = self.extension(&header, &mut room)?;
                    extensions.read(&text)?;
                }
                b'L' => extensions.path = Some(self.long_name(&header, &mut room)?),
                b'K' => extensions.link = Some(self.long_name(&header, &mut room)?),
                // Nothing that a global header may say holds for a layer's files.
                b'g' => self.expect_data(header.size()?)?,
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads data of the current entry, to fill the buffer.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        let length = buffer.len() as u64;
        if length > self.data_left {
            return Err(TarError::Truncated);
        }
        self.fill(buffer)?;
        self.data_left -= length;
        Ok(())
    }

    fn entry(&mut self, header: &Header<'_>, extensions: Extensions) -> Result<Entry, TarError> {
        let path = extensions.sparse.name.clone().or(extensions.path.clone());
        let path = path.unwrap_or_else(|| header.name());
        let kind = header.kind(&path)?;
        let mut blocks = Vec::new();
        let mut old_size = None;
        if header.flag() == b'S' {
            (blocks, old_size) = (header.sparse_pairs()?, Some(header.real_size()?));
            let mut more = header.has_more_pairs();
            while more {
                let mut block = [0; BLOCK];
                self.fill(&mut block)?;
                blocks.extend(sparse_pairs(&block[..504])?);
                more = block[504] != 0;
                if blocks.len() > MOST_EXTENTS {
                    return Err(TarError::Sparse);
                }
            }
        }
        let size = extensions.size.map_or_else(|| header.size(), Ok)?;
        let stored = if header.has_data(kind) { size } else { 0 };
        self.expect_data(stored)?;
        let words = &extensions.sparse;
        let (size, extents) = match (old_size, words.is_sparse()) {
            _ if kind != Kind::File => (0, Vec::new()),
            (Some(size), _) => (size, extents(blocks, size, stored)?),
            (None, true) => {
                let list = match words.list_in_data {
                    true => self.sparse_list()?,
                    false => words.list.clone(),
                };
                let size = words.size.ok_or(TarError::Sparse)?;
                (size, extents(pairs(&list)?, size, self.data_left)?)
            }
            (None, false) => (stored, vec![Extent { offset: 0, length: stored }]),
        };
        let device = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => header.device()?,
            _ => (0, 0),
        };
        Ok(Entry {
            link: extensions.link.unwrap_or_else(|| header.link()),
            path,
            kind,
            mode: header.mode()? & 0o7777,
            uid: extensions.uid.map_or_else(|| header.uid(), Ok)?,
            gid: extensions.gid.map_or_else(|| header.gid(), Ok)?,
            modified: extensions
                .modified
                .map_or_else(|| header.modified().map(|seconds| (seconds, 0)), Ok)?,
            device,
            size,
            extents,
            attributes: extensions.attributes,
        })
    }

    /// The data of an extended header, of which all before an entry share the room.
    fn extension(&mut self, header: &Header<'_>, room: &mut u64) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        *room = room.checked_sub(size).ok_or(TarError::LongExtension)?;
        let length = usize::try_from(size).map_err(|_| TarError::LongExtension)?;
        let mut text = vec![0; length];
        self.expect_data(size)?;
        self.read_data(&mut text)?;
        Ok(text)
    }

    fn long_name(&mut self, header: &Header<'_>, room: &mut u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(header, room)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// PAX sparse 1.0: decimal numbers, one a line, in whole blocks before the data. The first says how many pairs follow.
    fn sparse_list(&mut self) -> Result<Vec<u64>, TarError> {
        let (mut numbers, mut digits) = (Vec::new(), Vec::new());
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            self.read_data(&mut block)?;
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = decimal(&digits).ok_or(TarError::Sparse)?;
                digits.clear();
                if wanted.is_some() {
                    numbers.push(number);
                    continue;
                }
                let count = usize::try_from(number).ok().filter(|count| *count <= MOST_EXTENTS);
                wanted = Some(count.ok_or(TarError::Sparse)? * 2);
            }
            if digits.len() > BLOCK {
                return Err(TarError::Sparse);
            }
        }
        Ok(numbers)
    }

    fn expect_data(&mut self, size: u64) -> Result<(), TarError> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        // So that no sum of the two overflows.
        if size > i64::MAX.unsigned_abs() {
            return Err(TarError::Field("size"));
        }
        (self.data_left, self.padding) = (size, padding);
        Ok(())
    }

    fn pass_over(&mut self) -> Result<(), TarError> {
        let count = self.data_left + self.padding;
        if count > 0 {
            self.source.skip(count).map_err(truncated)?;
        }
        self.position += count;
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.source.read_exact(buffer).map_err(truncated)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// False at the end of the source.
    fn fill_or_end(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let first = loop {
            match self.source.read(&mut block[..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if first == 0 {
            return Ok(false);
        }
        self.source.read_exact(&mut block[first..]).map_err(truncated)?;
        self.position += BLOCK as u64;
        Ok(true)
    }
}

fn truncated(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Read(error),
    }
}

fn pairs(list: &[u64]) -> Result<Vec<(u64, u64)>, TarError> {
    let pairs = list.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(TarError::Sparse);
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

/// Extents in order, within the file, of which the archive has exactly the data.
fn extents(pairs: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Vec<Extent>, TarError> {
    let (mut end, mut data) = (0u64, 0u64);
    let mut extents = Vec::with_capacity(pairs.len());
    for (offset, length) in pairs {
        if offset < end {
            return Err(TarError::Sparse);
        }
        end = offset.checked_add(length).filter(|end| *end <= size).ok_or(TarError::Sparse)?;
        data += length;
        extents.push(Extent { offset, length });
    }
    // An extent within the file can't overflow the sum: they do not overlap.
    if data == stored && extents.len() <= MOST_EXTENTS {
        Ok(extents)
    } else {
        Err(TarError::Sparse)
    }
}
