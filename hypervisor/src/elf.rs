//! Which files a dynamically linked program opens before its first instruction.
//!
//! Reads program headers and dynamic sections itself: `ldd` would run the dynamic linker. Only 64-bit little-endian
//! files count; the host's own binaries are trusted, but lengths are checked all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Why the files can't be told.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Opening or reading.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its headers lead nowhere.
    #[error("{} is not a 64-bit ELF file that can be followed", .0.display())]
    Malformed(PathBuf),
    /// A library that is nowhere.
    #[error("no library {name}, which {} needs", .by.display())]
    NotFound {
        /// Its soname.
        name: String,
        /// Who asked first.
        by: PathBuf,
    },
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Most bytes that one table of a file may have.
const TABLE: u64 = 1024 * 1024;

/// The linker's cache; kept open to it in the jail, for it holds the order of directories.
const CACHE: &str = "/etc/ld.so.cache";

/// Where the linker looks when its cache knows nothing.
const DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// The program's interpreter, all libraries, and the linker's cache; nothing for a static program.
///
/// The paths are those that the linker opens, symbolic links and all.
///
/// # Errors
/// See [`ElfError`].
pub fn closure(program: &Path) -> Result<Vec<PathBuf>, ElfError> {
    let first = Linkage::read(program)?;
    let Some(interpreter) = first.interpreter.clone() else { return Ok(Vec::new()) };
    let cache = fs::read(CACHE).map(|bytes| parse_cache(&bytes)).unwrap_or_default();
    let mut found = BTreeSet::from([interpreter.clone()]);
    let mut names = BTreeSet::new();
    let mut open = vec![(program.to_path_buf(), first)];
    while let Some((by, linkage)) = open.pop() {
        for name in &linkage.needed {
            let interpreter_itself =
                interpreter.file_name().is_some_and(|file| file == name.as_str());
            if interpreter_itself || !names.insert(name.clone()) {
                continue;
            }
            let path = locate(name, &by, &linkage, &cache)
                .ok_or_else(|| ElfError::NotFound { name: name.clone(), by: by.clone() })?;
            let linkage = Linkage::read(&path)?;
            found.insert(path.clone());
            open.push((path, linkage));
        }
    }
    if !cache.is_empty() {
        found.insert(CACHE.into());
    }
    Ok(found.into_iter().collect())
}

fn locate(
    name: &str,
    by: &Path,
    linkage: &Linkage,
    cache: &BTreeMap<String, PathBuf>,
) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(name.into());
    }
    let origin = by.parent()?.to_str()?;
    let own = linkage.search.iter().map(|directory| {
        PathBuf::from(directory.replace("$ORIGIN", origin).replace("${ORIGIN}", origin))
    });
    let own = own.map(|directory| directory.join(name)).find(|path| path.exists());
    own.or_else(|| cache.get(name).filter(|path| path.exists()).cloned()).or_else(|| {
        DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.exists())
    })
}

/// What one file says of its links.
#[derive(Debug, Default)]
struct Linkage {
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    search: Vec<String>,
}

impl Linkage {
    fn read(path: &Path) -> Result<Self, ElfError> {
        let failed = |source| ElfError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        match Self::parse(&file) {
            Ok(Some(linkage)) => Ok(linkage),
            Ok(None) => Err(ElfError::Malformed(path.into())),
            Err(source) => Err(failed(source)),
        }
    }

    /// `None` when the file is not what it should be.
    fn parse(file: &File) -> io::Result<Option<Self>> {
        let header = bytes(file, 0, 64)?;
        let is_elf64 = header.starts_with(b"\x7fELF\x02\x01");
        let (Some(table), Some(size), Some(count)) =
            (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56))
        else {
            return Ok(None);
        };
        if !is_elf64 || size != 56 {
            return Ok(None);
        }
        let table = bytes(file, table, u64::from(count) * 56)?;
        let segments: Vec<Segment> = table.chunks_exact(56).filter_map(Segment::parse).collect();
        let mut linkage = Self::default();
        let of_kind = |kind| segments.iter().find(move |segment| segment.kind == kind);
        if let Some(segment) = of_kind(PT_INTERP) {
            let text = bytes(file, segment.offset, segment.length)?;
            linkage.interpreter = string_at(&text, 0).map(PathBuf::from);
        }
        if let Some(segment) = of_kind(PT_DYNAMIC) {
            let dynamic = bytes(file, segment.offset, segment.length)?;
            return linkage.follow(file, &segments, &dynamic).map(|done| done.then_some(linkage));
        }
        Ok(Some(linkage))
    }

    /// Reads the names that the dynamic section points to; false when they are nowhere.
    fn follow(&mut self, file: &File, segments: &[Segment], dynamic: &[u8]) -> io::Result<bool> {
        let entries: Vec<(u64, u64)> = dynamic
            .chunks_exact(16)
            .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let Some((_, address)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else {
            return Ok(entries.is_empty());
        };
        let Some((offset, rest)) = segments.iter().find_map(|segment| segment.file_range(*address))
        else {
            return Ok(false);
        };
        let strings = bytes(file, offset, rest.min(TABLE))?;
        for (tag, value) in entries {
            let target = match tag {
                DT_NEEDED => &mut self.needed,
                DT_RPATH | DT_RUNPATH => &mut self.search,
                _ => continue,
            };
            match usize::try_from(value).ok().and_then(|at| string_at(&strings, at)) {
                Some(text) if tag == DT_NEEDED => target.push(text),
                Some(text) => target.extend(text.split(':').map(String::from)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

#[derive(Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    length: u64,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32_at(bytes, 0)?,
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 16)?,
            length: u64_at(bytes, 32)?,
        })
    }

    /// File offset of an address in this segment, and how many bytes follow there.
    fn file_range(&self, address: u64) -> Option<(u64, u64)> {
        let within = address.checked_sub(self.address)?;
        let rest = self.length.checked_sub(within)?;
        (self.kind == PT_LOAD && rest > 0).then_some((self.offset.checked_add(within)?, rest))
    }
}

/// Library names and paths of the linker's cache, format `glibc-ld.so.cache1.1`; empty for any other.
fn parse_cache(cache: &[u8]) -> BTreeMap<String, PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    #[cfg(target_arch = "aarch64")]
    const FLAGS: u32 = 0x0a03;
    #[cfg(not(target_arch = "aarch64"))]
    const FLAGS: u32 = 0x0303;
    let mut found = BTreeMap::new();
    if !cache.starts_with(MAGIC) || cache.len() < HEADER {
        return found;
    }
    let count = u32_at(cache, MAGIC.len()).unwrap_or(0) as usize;
    for entry in cache[HEADER..].chunks_exact(ENTRY).take(count) {
        // Entries for particular processors are left out: without them the linker takes the plain one.
        if u32_at(entry, 0) != Some(FLAGS) || u64_at(entry, 16) != Some(0) {
            continue;
        }
        let text = |at| u32_at(entry, at).and_then(|offset| string_at(cache, offset as usize));
        if let (Some(name), Some(path)) = (text(4), text(8)) {
            found.entry(name).or_insert_with(|| path.into());
        }
    }
    found
}

fn bytes(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    if length > TABLE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a table of the file is too long"));
    }
    // Bounded by TABLE, so it fits.
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn string_at(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let length = rest.iter().position(|byte| *byte == 0)?;
    String::from_utf8(rest[..length].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::Path};

    use proptest::proptest;

    use super::{ElfError, closure, parse_cache};

    #[test]
    fn a_shell_needs_its_interpreter_and_libc() {
        let files = closure(Path::new("/bin/sh")).unwrap();
        let has = |name: &str| files.iter().any(|file| file.to_string_lossy().contains(name));
        assert!(has("ld-linux") && has("libc.so.6"), "{files:?}");
        assert!(files.iter().all(|file| file.is_absolute() && file.exists()));
    }

    #[test]
    fn a_script_is_no_program() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[b'#'; 100]).unwrap();
        assert!(matches!(closure(file.path()), Err(ElfError::Malformed(_))));
        assert!(matches!(closure(Path::new("/no/such")), Err(ElfError::Read { .. })));
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_an_error_and_no_panic(at in 0_usize..4096, value: u8) {
            let mut bytes = fs::read("/bin/sh").unwrap();
            bytes[at] = value;
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            drop(closure(file.path()));
        }

        #[test]
        fn any_cache_may_be_parsed(bytes: Vec<u8>) {
            let mut cache = b"glibc-ld.so.cache1.1".to_vec();
            cache.extend(bytes);
            parse_cache(&cache);
        }
    }
}
