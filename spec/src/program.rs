//! The search for a container's program, on the host, before any VM is there.
//!
//! Engines make exit code 127 only of an error of *create*, so create itself looks: along PATH, through symbolic links,
//! and through bind mounts, all as the container will see them. Every path is walked a component at a time, below a
//! directory that it can't leave; where a file system is made by the guest (tmpfs, proc), nobody can look yet, and the
//! guest decides.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat},
    io::Errno,
};

use crate::{
    checked::{Checked, MountPoint},
    error::ProgramError,
};

/// As many symbolic links as Linux follows.
const MAX_LINKS: usize = 40;

/// Where a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// At this path of the container, which is no symbolic link.
    Found(PathBuf),
    /// Below a mount that only the guest makes; the guest will say.
    InGuest(PathBuf),
}

/// Looks for the program that a container is to run, as runc looks for it.
///
/// # Errors
/// In the words of runc, for engines look for them; see [`ProgramError::exit_code`].
pub fn resolve_program(checked: &Checked) -> Result<Program, ProgramError> {
    let process = &checked.process;
    let name = process.args.first().cloned().unwrap_or_default();
    let look = |source| ProgramError::Look { name: name.clone(), source };
    let tree = Tree::new(&checked.rootfs, &checked.mounts).map_err(look)?;
    if name.contains('/') {
        return match tree.look(&process.cwd.join(&name)).map_err(look)? {
            Sight::Executable(path) => Ok(Program::Found(path)),
            Sight::Guest(path) => Ok(Program::InGuest(path)),
            Sight::Other => Err(ProgramError::NotExecutable { name }),
            Sight::Nothing => Err(ProgramError::NotFound { name }),
        };
    }
    let directories = process.variable("PATH").unwrap_or_default();
    let mut in_guest = None;
    // As for runc, the working directory is no place for programs.
    let absolute = |directory: &&str| directory.starts_with('/') && !name.is_empty();
    for directory in directories.split(':').filter(absolute) {
        match tree.look(&Path::new(directory).join(&name)).map_err(look)? {
            Sight::Executable(path) if in_guest.is_none() => return Ok(Program::Found(path)),
            // One before it that only the guest sees may be the one that is run.
            Sight::Executable(_) => break,
            Sight::Guest(path) => in_guest = in_guest.or(Some(path)),
            Sight::Other | Sight::Nothing => {}
        }
    }
    in_guest.map(Program::InGuest).ok_or(ProgramError::NotInPath { name })
}

/// What is at a path.
enum Sight {
    /// A file with an execute bit.
    Executable(PathBuf),
    /// A file system that the guest makes.
    Guest(PathBuf),
    /// A directory, or a file without an execute bit.
    Other,
    /// Nothing.
    Nothing,
}

/// The tree that the container will see, as far as the host has it.
struct Tree {
    /// The root, then the mounts in the order in which they are made: the last one that covers a path counts.
    layers: Vec<Layer>,
}

struct Layer {
    destination: PathBuf,
    /// None when the guest makes it.
    directory: Option<OwnedFd>,
}

impl Tree {
    fn new(rootfs: &Path, mounts: &[MountPoint]) -> io::Result<Self> {
        let root = Layer { destination: "/".into(), directory: Some(open_layer(rootfs)?) };
        let mut tree = Self { layers: vec![root] };
        for mount in mounts {
            // A destination may lead through links of the tree so far; where it does not exist, it will be made.
            let destination = match tree.walk(&mount.destination)? {
                Step::At(path, _) | Step::Guest(path) => path,
                Step::Nothing => mount.destination.clone(),
            };
            let directory = mount.host.as_deref().map(open_layer).transpose()?;
            tree.layers.push(Layer { destination, directory });
        }
        Ok(tree)
    }

    fn look(&self, path: &Path) -> io::Result<Sight> {
        let (path, file) = match self.walk(path)? {
            Step::At(path, file) => (path, file),
            Step::Guest(path) => return Ok(Sight::Guest(path)),
            Step::Nothing => return Ok(Sight::Nothing),
        };
        let stat = fstat(&file)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let executable = stat.st_mode & 0o111 != 0 && !directory;
        Ok(if executable { Sight::Executable(path) } else { Sight::Other })
    }

    /// Follows a path from the container's root to its end, links included.
    fn walk(&self, path: &Path) -> io::Result<Step> {
        let mut at = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = parts(path).collect();
        let mut links = 0;
        let Some(mut here) = self.open(&at)? else { return Ok(Step::Guest(at)) };
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                at.pop();
            } else {
                at.push(&part);
            }
            here = match self.open(&at) {
                Ok(Some(file)) => file,
                Ok(None) => {
                    at.extend(rest);
                    return Ok(Step::Guest(at));
                }
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Step::Nothing),
                Err(error) => return Err(error.into()),
            };
            if FileType::from_raw_mode(fstat(&here)?.st_mode) == FileType::Symlink {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = OsString::from_vec(readlinkat(&here, "", Vec::new())?.into_bytes());
                at.pop();
                if target.as_bytes().starts_with(b"/") {
                    at = PathBuf::from("/");
                }
                for part in parts(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(part);
                }
            }
        }
        Ok(Step::At(at, here))
    }

    /// Opens a path in which no component but the last is a link; `None` when it lies in a file system of the guest.
    fn open(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        let covering = self.layers.iter().rev().find_map(|layer| {
            path.strip_prefix(&layer.destination).ok().map(|below| (layer, below))
        });
        let Some((Layer { directory: Some(directory), .. }, below)) = covering else {
            return Ok(None);
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if below.as_os_str().is_empty() {
            // The layer itself: a directory, or a file that is mounted on a file.
            return directory.try_clone().map(Some).map_err(|_| Errno::MFILE);
        }
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // O_PATH with O_NOFOLLOW opens a link that is the last component, NO_SYMLINKS or not.
        openat2(directory, below, flags, Mode::empty(), resolve).map(Some)
    }
}

/// Where a walk ended.
enum Step {
    At(PathBuf, OwnedFd),
    Guest(PathBuf),
    Nothing,
}

fn open_layer(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The components of a path that are names or `..`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}
