//! The files that QEMU opens, and where it finds them.
//!
//! In a jail they are all that there is. The firmware list is golden: a tracer was watched, machine by machine.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::QemuSettings;
use crate::{HypervisorError, MachineType, VmConfig, elf, jail::JailFile};

/// Directories beside QEMU's `bin` in which distributions keep firmware.
const FIRMWARE: [&str; 3] = ["share/qemu", "share/seabios", "share/qemu-kvm"];

/// Paths as QEMU sees them, and the host's files behind them.
pub(super) struct Files {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// Directory of the firmware; `None` leaves the search to QEMU.
    pub(super) firmware: Option<PathBuf>,
    pub(super) jailed: Vec<JailFile>,
}

impl Files {
    pub(super) fn find(
        settings: &QemuSettings,
        config: &VmConfig,
    ) -> Result<Self, HypervisorError> {
        let binary = settings.binary.as_path();
        open("QEMU", binary)?;
        let kernel = Kernel::look(&config.kernel)?;
        open("initrd", &config.initrd)?;
        if settings.jail.is_none() {
            let (kernel, initrd) = (config.kernel.clone(), config.initrd.clone());
            return Ok(Self { kernel, initrd, firmware: None, jailed: Vec::new() });
        }
        let inside = |name: &str| Path::new("/guest").join(name);
        let mut jailed = vec![
            JailFile::same(binary),
            JailFile { host: config.kernel.clone(), path: inside("kernel") },
            JailFile { host: config.initrd.clone(), path: inside("initrd") },
        ];
        for name in firmware(config.machine, kernel) {
            let host = find_firmware(binary, name)
                .ok_or_else(|| HypervisorError::Firmware { name, vmm: binary.into() })?;
            jailed.push(JailFile { host, path: Path::new("/firmware").join(name) });
        }
        let libraries = elf::closure(binary).map_err(HypervisorError::Libraries)?;
        jailed.extend(libraries.into_iter().map(JailFile::same));
        Ok(Self {
            kernel: inside("kernel"),
            initrd: inside("initrd"),
            firmware: Some("/firmware".into()),
            jailed,
        })
    }
}

/// Formats that QEMU boots directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `vmlinux` with a PVH entry, as we build it.
    Elf,
    /// As distributions package it.
    BzImage,
}

impl Kernel {
    /// QEMU takes any file for a very old kernel and runs into nowhere, so look before.
    ///
    /// # Errors
    /// [`HypervisorError::File`] for what is neither.
    pub fn look(path: &Path) -> Result<Self, HypervisorError> {
        let file = open("kernel", path)?;
        let mut head = [0; 0x206];
        let known = file.read_exact_at(&mut head, 0).ok().and_then(|()| {
            let elf = head.starts_with(b"\x7fELF").then_some(Self::Elf);
            elf.or_else(|| head.ends_with(b"HdrS").then_some(Self::BzImage))
        });
        known.ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "neither ELF nor bzImage");
            HypervisorError::File { what: "kernel", path: path.into(), source }
        })
    }
}

/// What QEMU opens before the guest runs. All it says without them is that a ROM is missing.
fn firmware(machine: MachineType, kernel: Kernel) -> Vec<&'static str> {
    let mut names = match machine {
        MachineType::Microvm => vec!["qboot.rom"],
        MachineType::Q35 => vec!["bios-256k.bin", "kvmvapic.bin"],
    };
    names.push(match kernel {
        Kernel::Elf => "pvh.bin",
        Kernel::BzImage => "linuxboot_dma.bin",
    });
    names
}

fn find_firmware(binary: &Path, name: &str) -> Option<PathBuf> {
    let prefix = binary.parent()?.parent()?;
    FIRMWARE.iter().map(|directory| prefix.join(directory).join(name)).find(|path| path.exists())
}

fn open(what: &'static str, path: &Path) -> Result<File, HypervisorError> {
    let failed = |source| HypervisorError::File { what, path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::Kernel;

    fn look(bytes: &[u8]) -> Result<Kernel, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Kernel::look(file.path()).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn kernels_are_known_by_their_head() {
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(4096, 0);
        assert_eq!(look(&elf), Ok(Kernel::Elf));
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(look(&image), Ok(Kernel::BzImage));
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(look(b"").is_err());
        assert!(look(&[b'x'; 4096]).is_err());
        assert!(look(b"\x7fELF").is_err());
        let directory = tempfile::tempdir().unwrap();
        assert!(Kernel::look(directory.path()).is_err());
        fs::remove_dir(directory.path()).unwrap();
        assert!(Kernel::look(directory.path()).is_err());
    }
}
