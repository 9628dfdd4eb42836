//! Loop devices: block devices whose blocks are a file's.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use rustix::fs::{Mode, OFlags, open};

/// How often a device that was free may be somebody else's by the time that it is asked for.
const ATTEMPTS: usize = 100;

/// `<linux/loop.h>`.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Default)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [[u64; 8]; 2],
    key: [u64; 4],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Default)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device that is free again when this is dropped and nothing of it is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    /// Path of its node.
    pub path: PathBuf,
    /// What holds it, and reads its blocks.
    pub fd: OwnedFd,
}

/// Makes a free loop device one of `file`.
///
/// # Errors
/// Those of opening `/dev/loop-control` and the device's node, and of the ioctls: `EBUSY` when each device that was free was
/// taken by somebody else.
pub fn attach(file: impl AsFd, is_read_only: bool) -> io::Result<LoopDevice> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = open("/dev/loop-control", flags, Mode::empty())?;
    let fd = u32::try_from(file.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let read_only = if is_read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let info = Info { flags: LO_FLAGS_AUTOCLEAR | read_only, ..Info::default() };
    let config = Config { fd, info, ..Config::default() };
    let mut attempts = 1;
    loop {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let fd = open(&path, flags, Mode::empty())?;
        // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`; `config` is laid out as one and outlives the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok(LoopDevice { path, fd });
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EBUSY) && attempts < ATTEMPTS => {
                attempts += 1;
            }
            error => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{Read, Write},
    };

    use super::{Config, attach};

    #[test]
    fn a_device_has_the_bytes_of_its_file() {
        // <linux/loop.h>.
        assert_eq!(size_of::<Config>(), 304);
        if File::options().read(true).write(true).open("/dev/loop-control").is_err() {
            return eprintln!("SKIP no loop devices");
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let device = attach(&file, true).unwrap();
        let name = device.path.file_name().unwrap().to_str().unwrap();
        for flag in ["loop/autoclear", "ro"] {
            let set = fs::read_to_string(format!("/sys/block/{name}/{flag}")).unwrap();
            assert_eq!(set, "1\n", "{flag}");
        }
        let mut read = Vec::new();
        File::from(device.fd).read_to_end(&mut read).unwrap();
        assert!(read == [7; 8192]);
    }
}
