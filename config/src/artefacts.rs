//! Where the installed files are: beside the program that asks, whatever the prefix.
//!
//! ```text
//! PREFIX/bin/                kata-runtime, containerd-shim-kata-v2
//! PREFIX/libexec/kata/       kata-proxy, kata-monitor
//! PREFIX/share/kata/         vmlinux, initrd.img
//! ```

use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::settings::Config;

/// Debian's QEMU, for callers whose `PATH` is bare (engines clear it).
const USUAL_VMM: &str = "/usr/bin/qemu-system-x86_64";

/// A file that Kata consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artefact {
    /// `kata-runtime`.
    Runtime,
    /// `containerd-shim-kata-v2`.
    Shim,
    /// `kata-proxy`.
    Proxy,
    /// `kata-monitor`.
    Monitor,
    /// Guest kernel.
    Kernel,
    /// initrd with the agent.
    Initrd,
}

impl Artefact {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Runtime, Self::Shim, Self::Proxy, Self::Monitor, Self::Kernel, Self::Initrd];

    /// Path below the prefix.
    pub fn relative_path(self) -> &'static str {
        match self {
            Self::Runtime => "bin/kata-runtime",
            Self::Shim => "bin/containerd-shim-kata-v2",
            Self::Proxy => "libexec/kata/kata-proxy",
            Self::Monitor => "libexec/kata/kata-monitor",
            Self::Kernel => "share/kata/vmlinux",
            Self::Initrd => "share/kata/initrd.img",
        }
    }

    /// As a person calls it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Runtime => "kata-runtime",
            Self::Shim => "shim",
            Self::Proxy => "proxy",
            Self::Monitor => "monitor",
            Self::Kernel => "guest kernel",
            Self::Initrd => "guest initrd",
        }
    }

    fn is_program(self) -> bool {
        !matches!(self, Self::Kernel | Self::Initrd)
    }
}

/// Why a file that Kata needs is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// The running program's own path.
    #[error("cannot find out where this program is installed")]
    Prefix(#[source] io::Error),
    /// Not there, or not what it should be.
    #[error("{what} is missing: {}: {reason}; {remedy}", path.display())]
    Missing {
        /// As a person calls it.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No QEMU anywhere.
    #[error(
        "no qemu-system-x86_64 in PATH ({searched}) or {USUAL_VMM}; install qemu-system-x86, or set hypervisor.path"
    )]
    NoVmm {
        /// The `PATH` that was searched.
        searched: String,
    },
}

/// Directory that Kata is installed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(PathBuf);

impl Prefix {
    /// The one that holds the running program, symbolic links resolved. A copy of the program outside of any `bin` has the
    /// one whose shim is found in `PATH`, as engines would find it.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn of_this_program() -> Result<Self, ArtefactError> {
        let program = env::current_exe().map_err(ArtefactError::Prefix)?;
        let directory = program.parent().ok_or_else(|| no_prefix(&program))?;
        let placed = ["bin", "sbin", "libexec/kata"].iter().any(|place| directory.ends_with(place));
        if let Some(prefix) = (!placed).then(|| Self::in_path(&env::var_os("PATH")?)).flatten() {
            return Ok(prefix);
        }
        // Programs of ours lie in bin, or one deeper in libexec/kata.
        let levels = if directory.ends_with("libexec/kata") { 2 } else { 1 };
        // A program in / has no prefix above it; what it needs is then found, or not, below /.
        let prefix = directory.ancestors().nth(levels).unwrap_or(directory);
        Ok(Self(prefix.to_owned()))
    }

    fn in_path(path: &OsStr) -> Option<Self> {
        let shim = Path::new(Artefact::Shim.relative_path()).file_name()?;
        env::split_paths(path)
            .filter(|directory| directory.is_absolute())
            .filter_map(|directory| directory.join(shim).canonicalize().ok())
            .filter_map(|shim| Some(Self(shim.parent()?.parent()?.to_owned())))
            .find(|prefix| prefix.find(Artefact::Shim).is_ok())
    }

    /// A prefix given by name.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The directory itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Where the file should be; it may not be there.
    pub fn path(&self, artefact: Artefact) -> PathBuf {
        self.0.join(artefact.relative_path())
    }

    /// Where the file is.
    ///
    /// # Errors
    /// [`ArtefactError::Missing`] when it can't be used.
    pub fn find(&self, artefact: Artefact) -> Result<PathBuf, ArtefactError> {
        usable(artefact, self.path(artefact))
    }

    /// The guest kernel: the configured one, else the installed one.
    ///
    /// # Errors
    /// As [`Prefix::find`].
    pub fn kernel(&self, config: &Config) -> Result<PathBuf, ArtefactError> {
        self.configured(Artefact::Kernel, config.guest.kernel.as_ref())
    }

    /// The initrd: the configured one, else the installed one.
    ///
    /// # Errors
    /// As [`Prefix::find`].
    pub fn initrd(&self, config: &Config) -> Result<PathBuf, ArtefactError> {
        self.configured(Artefact::Initrd, config.guest.initrd.as_ref())
    }

    fn configured(
        &self,
        artefact: Artefact,
        given: Option<&PathBuf>,
    ) -> Result<PathBuf, ArtefactError> {
        usable(artefact, given.cloned().unwrap_or_else(|| self.path(artefact)))
    }
}

/// QEMU: the configured one, else the first in `PATH`, else Debian's.
///
/// # Errors
/// A configured one that can't be used is an error, never a reason to look further.
pub fn find_vmm(config: &Config) -> Result<PathBuf, ArtefactError> {
    if let Some(path) = &config.hypervisor.path {
        return check(path, true).map(|()| path.clone()).map_err(|reason| ArtefactError::Missing {
            what: "QEMU",
            path: path.clone(),
            reason,
            remedy: "correct hypervisor.path, or leave it out and install qemu-system-x86",
        });
    }
    let searched = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&searched)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join("qemu-system-x86_64"))
        .chain([PathBuf::from(USUAL_VMM)])
        .find(|path| check(path, true).is_ok())
        .ok_or_else(|| ArtefactError::NoVmm { searched: searched.to_string_lossy().into_owned() })
}

fn usable(artefact: Artefact, path: PathBuf) -> Result<PathBuf, ArtefactError> {
    match check(&path, artefact.is_program()) {
        Ok(()) => Ok(path),
        Err(reason) => Err(ArtefactError::Missing {
            what: artefact.describe(),
            path,
            reason,
            remedy: match artefact {
                Artefact::Kernel => "build it with `make kernel`, or set kernel.path",
                Artefact::Initrd => "build it with `make build`, or set initrd.path",
                _ => "install Kata again with `make install`",
            },
        }),
    }
}

fn check(path: &Path, program: bool) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| reason(&error))?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    if program && metadata.permissions().mode() & 0o111 == 0 {
        return Err("not executable".to_owned());
    }
    Ok(())
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn no_prefix(program: &Path) -> ArtefactError {
    ArtefactError::Prefix(io::Error::other(format!("{} lies in no prefix", program.display())))
}
