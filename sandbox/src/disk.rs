//! Block devices of the host that a guest gets as disks.

use std::{fs, io, path::PathBuf};

use kata_hypervisor::{Access, Disk};
use kata_spec::HostDisk;
use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor, open};
use thiserror::Error;

/// Why a disk is not to be had.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DiskError {
    #[error("find block device {serial}")]
    Find { serial: String, source: io::Error },
    #[error("open block device {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is not block device {serial} any more", path.display())]
    Other { path: PathBuf, serial: String },
    #[error("the VM has booted without block device {serial}, and takes none while it runs")]
    Late { serial: String },
}

/// Opens a block device, by the name that the kernel has for it.
///
/// # Errors
/// [`DiskError`].
pub fn take(disk: &HostDisk) -> Result<Disk, DiskError> {
    let serial = disk.serial();
    let find = |source| DiskError::Find { serial: serial.clone(), source };
    let event = fs::read_to_string(format!("/sys/dev/block/{serial}/uevent")).map_err(find)?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| find(io::ErrorKind::NotFound.into()))?;
    let path = PathBuf::from("/dev").join(name);
    let (mode, access) = match disk.writable {
        true => (OFlags::RDWR, Access::ReadWrite),
        false => (OFlags::RDONLY, Access::ReadOnly),
    };
    let failed =
        |source: rustix::io::Errno| DiskError::Open { path: path.clone(), source: source.into() };
    let file = open(&path, mode | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = fstat(&file).map_err(failed)?;
    let number = (u64::from(major(stat.st_rdev)), u64::from(minor(stat.st_rdev)));
    let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    if !is_block || number != (disk.major, disk.minor) {
        return Err(DiskError::Other { path, serial });
    }
    Ok(Disk { file, access, serial })
}
