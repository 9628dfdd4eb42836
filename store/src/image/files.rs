//! The files of an image, in a directory or in an archive, read where they are; an archive that is compressed as a whole is
//! read from a copy without a name, which goes with the last who has it open.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Component, Path},
    sync::Arc,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use crate::{
    layer::{Budget, LayerError, Plain},
    reference::{Form, Reference},
    tar::{Archive, Kind, Source, TarError},
};

/// Most members of an archive.
const MOST_MEMBERS: usize = 65_536;

/// Links that lead from member to member.
const MOST_LINKS: usize = 8;

/// Why a file of an image can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The directory or archive itself.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// What is no archive.
    #[error("{0}")]
    Archive(String),
    /// What is compressed as a whole, and would fill the disk.
    #[error("cannot unpack it")]
    Room(#[source] LayerError),
    /// A file of it.
    #[error("cannot read its {name}")]
    Read {
        /// Path in the layout.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// A directory, or an archive whose members are known.
pub enum Files {
    /// Below this directory.
    Directory(OwnedFd),
    /// In this file.
    Archive {
        /// The archive.
        file: Arc<File>,
        /// What it has, by plain names.
        members: HashMap<String, Member>,
    },
}

/// A member of an archive.
#[derive(Debug)]
pub enum Member {
    /// A file's bytes.
    File {
        /// Where they begin.
        offset: u64,
        /// How many there are.
        size: u64,
    },
    /// Another name of another member.
    Link(String),
}

impl Files {
    /// Opens what a reference names; a compressed archive is unpacked to a file without a name in `scratch`.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn open(reference: &Reference, scratch: &Path) -> Result<Self, FilesError> {
        let failed = |error: rustix::io::Errno| FilesError::Open(error.into());
        if reference.form == Form::Directory {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = openat(CWD, &reference.path, flags, Mode::empty());
            return directory.map(Self::Directory).map_err(failed);
        }
        // A fifo in its place must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(CWD, &reference.path, flags, Mode::empty()).map_err(failed)?;
        let file = plain_archive(regular(file).map_err(FilesError::Open)?, scratch)?;
        let members = index(&file)?;
        Ok(Self::Archive { file: Arc::new(file), members })
    }

    /// True when there is such a file.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    /// A file, and its size.
    ///
    /// # Errors
    /// [`FilesError::Read`].
    pub fn find(&self, name: &str) -> Result<(Section, u64), FilesError> {
        self.section(name)
            .map(|section| {
                let size = section.left;
                (section, size)
            })
            .map_err(|source| FilesError::Read { name: shown(name), source })
    }

    fn section(&self, name: &str) -> io::Result<Section> {
        match self {
            Self::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = regular(openat2(directory, name, flags, Mode::empty(), resolve)?)?;
                let left = file.metadata()?.len();
                Ok(Section { file: Arc::new(file), offset: 0, left })
            }
            Self::Archive { file, members } => {
                let mut name = name;
                for _ in 0..MOST_LINKS {
                    match members.get(name) {
                        Some(Member::File { offset, size }) => {
                            let file = file.clone();
                            return Ok(Section { file, offset: *offset, left: *size });
                        }
                        Some(Member::Link(other)) => name = other,
                        None => return Err(io::Error::other("it is not in the archive")),
                    }
                }
                Err(io::Error::other("it is a link that leads nowhere"))
            }
        }
    }
}

/// Part of a file, read without moving anybody's position.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read_at(&mut buffer[..most], self.offset)?;
        // The file has become shorter since it was looked at.
        if length == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

fn regular(file: OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        _ => Err(io::Error::other("it is no regular file")),
    }
}

/// The archive itself, or what comes out of it when it is compressed: at most what the file system has room for.
fn plain_archive(file: File, scratch: &Path) -> Result<File, FilesError> {
    let wrong = |error: io::Error| FilesError::Archive(format!("cannot unpack it: {error}"));
    let plain = match Plain::new(&file).map_err(wrong)? {
        Plain::Uncompressed(_) => None,
        compressed => Some(compressed),
    };
    let Some(plain) = plain else {
        // What was looked at moved the position.
        (&file).seek(SeekFrom::Start(0)).map_err(FilesError::Open)?;
        return Ok(file);
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let copy = openat(CWD, scratch, flags, Mode::RUSR).map_err(|error| wrong(error.into()))?;
    let room = Budget::of(&copy).map_err(wrong)?.room();
    let mut copy = File::from(copy);
    let length = io::copy(&mut plain.take(room.saturating_add(1)), &mut copy).map_err(wrong)?;
    if length > room {
        return Err(FilesError::Room(LayerError::Room(room >> 20)));
    }
    copy.seek(SeekFrom::Start(0)).map_err(FilesError::Open)?;
    Ok(copy)
}

/// A file whose members are passed over without being read.
struct Seeking {
    file: io::BufReader<File>,
    size: u64,
}

impl Read for Seeking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Source for Seeking {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let here = self.file.stream_position()?;
        if here.checked_add(count).is_none_or(|there| there > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.seek(SeekFrom::Start(here + count)).map(drop)
    }
}

fn index(file: &File) -> Result<HashMap<String, Member>, FilesError> {
    let own = file.try_clone().map_err(FilesError::Open)?;
    let size = own.metadata().map_err(FilesError::Open)?.len();
    let wrong = |error: TarError| FilesError::Archive(format!("cannot read it: {error}"));
    let mut archive = Archive::new(Seeking { file: io::BufReader::new(own), size });
    let mut members = HashMap::new();
    while let Some(entry) = archive.next().map_err(wrong)? {
        let Some(name) = plain(&entry.path) else { continue };
        let member = match entry.kind {
            // A sparse file is none that a program for images writes.
            Kind::File if entry.extents.len() == 1 && entry.extents[0].length == entry.size => {
                Member::File { offset: archive.position(), size: entry.size }
            }
            Kind::HardLink => match plain(&entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Symlink => match relative(&name, &entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        if members.len() >= MOST_MEMBERS {
            let why = format!("it has more than {MOST_MEMBERS} members");
            return Err(FilesError::Archive(why));
        }
        members.insert(name, member);
    }
    Ok(members)
}

/// A name without dots; none for what no image has.
fn plain(path: &[u8]) -> Option<String> {
    let mut names = Vec::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::ParentDir => {
                names.pop()?;
            }
            _ => {}
        }
    }
    (path.len() <= 1024 && !names.is_empty()).then(|| names.join("/"))
}

/// What a symbolic link beside `name` means.
fn relative(name: &str, target: &[u8]) -> Option<String> {
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    plain(&[directory.as_bytes(), b"/", target].concat())
}

fn shown(name: &str) -> String {
    name.chars().take(200).flat_map(char::escape_debug).collect()
}
