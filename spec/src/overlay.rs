//! Mounts of type overlay: engines write them for volumes that are thrown away, and for images that are looked into.
//!
//! The overlay is made on the host, detached, and handed on as every other volume is. No layer is named by its path, since
//! the kernel takes 255 bytes for an option: each is opened, and named by its descriptor.

use std::{
    fmt::Write as _,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};
use thiserror::Error;

/// Longest value that fsconfig(2) takes.
const LONGEST_OPTION: usize = 255;

/// Flags of overlayfs itself that don't change what a container may do.
const FLAGS: &[&str] = &["volatile", "userxattr"];

/// What is about the mount, not about the overlay: it goes to the guest, which makes its own mount of it.
const OF_THE_MOUNT: &[&str] = &[
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "relatime",
    "norelatime",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
];

/// Why there is no overlay.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum OverlayError {
    #[error("open the layer {}", path.display())]
    Layer { path: PathBuf, source: io::Error },
    #[error("set {option}")]
    Option { option: String, source: io::Error },
    #[error("mount it")]
    Mount(#[source] io::Error),
}

/// The layers of an overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// Read-only ones, the topmost first.
    pub lower: Vec<PathBuf>,
    /// What is written goes here.
    pub upper: Option<PathBuf>,
    /// Where the kernel prepares it.
    pub work: Option<PathBuf>,
    /// Further flags of overlayfs.
    pub flags: Vec<String>,
}

/// Reads the options of a mount; the error says what is wrong with them.
pub(crate) fn parse(options: &[String]) -> Result<Layers, String> {
    let mut layers = Layers::default();
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", list)) => layers.lower = Layers::split(list),
            Some(("upperdir", path)) => layers.upper = Some(path.into()),
            Some(("workdir", path)) => layers.work = Some(path.into()),
            None if FLAGS.contains(&option.as_str()) => layers.flags.push(option.clone()),
            None if OF_THE_MOUNT.contains(&option.as_str()) => {}
            _ => return Err(format!("{option} is no option of an overlay that Kata knows")),
        }
    }
    if layers.lower.is_empty() {
        return Err("an overlay needs a lowerdir".to_owned());
    }
    if layers.upper.is_some() != layers.work.is_some() {
        return Err("upperdir and workdir go together".to_owned());
    }
    Ok(layers)
}

/// The options of the bind mount that the guest makes of it.
pub(crate) fn binding(options: &[String]) -> Vec<String> {
    let kept = options.iter().filter(|option| OF_THE_MOUNT.contains(&option.as_str()));
    std::iter::once("bind".to_owned()).chain(kept.cloned()).collect()
}

fn push(paths: &mut [String], character: Option<char>) {
    if let Some(path) = paths.last_mut() {
        path.extend(character);
    }
}

impl Layers {
    /// The paths of a `lowerdir`: they are between colons; a backslash takes the meaning off the next character.
    pub fn split(list: &str) -> Vec<PathBuf> {
        let mut paths = vec![String::new()];
        let mut characters = list.chars();
        while let Some(character) = characters.next() {
            match character {
                ':' => paths.push(String::new()),
                '\\' => push(&mut paths, characters.next()),
                other => push(&mut paths, Some(other)),
            }
        }
        paths.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect()
    }

    /// Mounts it, attached nowhere; `attributes` are the mount's own.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, OverlayError> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| OverlayError::Mount(error.into()))?;
        let set = |name: &str, value: &str| {
            fsconfig_set_string(context.as_fd(), name, value).map_err(option(name))
        };
        let lower = self.lower.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut all = String::new();
        for layer in &lower {
            // Writing to a string can't fail.
            write!(all, ":{}", name(layer)).ok();
        }
        let all = all.trim_start_matches(':');
        if all.len() <= LONGEST_OPTION {
            set("lowerdir", all)?;
        } else {
            lower.iter().try_for_each(|layer| set("lowerdir+", &name(layer)))?;
        }
        let mut kept = Vec::new();
        for (option, path) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if let Some(path) = path {
                let layer = open(path)?;
                set(option, &name(&layer))?;
                kept.push(layer);
            }
        }
        for flag in &self.flags {
            fsconfig_set_flag(context.as_fd(), flag.as_str()).map_err(option(flag))?;
        }
        let failed = |error: Errno| OverlayError::Mount(error.into());
        fsconfig_create(context.as_fd()).map_err(failed)?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
    }
}

fn option(name: &str) -> impl Fn(Errno) -> OverlayError + '_ {
    move |error| OverlayError::Option { option: name.to_owned(), source: error.into() }
}

fn open(path: &Path) -> Result<OwnedFd, OverlayError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|error| OverlayError::Layer { path: path.to_owned(), source: error.into() })
}

fn name(layer: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", layer.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::{Layers, binding, parse};

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn layers_are_split_as_the_kernel_splits_them() {
        let layers = parse(&words("lowerdir=/a\\:b:/c upperdir=/u workdir=/w private")).unwrap();
        assert_eq!(
            layers,
            Layers {
                lower: vec!["/a:b".into(), "/c".into()],
                upper: Some("/u".into()),
                work: Some("/w".into()),
                flags: vec![],
            }
        );
    }

    #[test]
    fn what_is_about_the_mount_goes_to_the_guest() {
        assert_eq!(binding(&words("lowerdir=/a nosuid ro volatile")), words("bind nosuid ro"));
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_told() {
        for (options, word) in [
            ("lowerdir=/a nonsense=on", "nonsense=on"),
            ("upperdir=/a workdir=/b", "lowerdir"),
            ("lowerdir=/a upperdir=/b", "workdir"),
        ] {
            let error = parse(&words(options)).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
