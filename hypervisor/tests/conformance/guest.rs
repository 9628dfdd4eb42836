//! A guest of a few KiB that ends as it is told.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use tempfile::TempDir;

/// What the guest does once it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Prints `tick` for ever.
    Ticks,
    /// Restarts.
    Reset,
    /// Switches itself off.
    Off,
    /// Makes its kernel panic.
    Panic,
    /// Ends its PID 1.
    Exit,
    /// Says what it finds behind its devices.
    Probe,
}

/// What every guest prints first.
pub const MARKER: &str = "GUEST-UP";

impl Guest {
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Ticks => "end=never",
            Self::Reset => "end=reset",
            Self::Off => "end=off",
            Self::Panic => "end=panic",
            Self::Exit => "end=exit",
            Self::Probe => "end=probe",
        }
    }
}

/// Kernel and initrd of all test guests.
pub struct Image {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    _directory: TempDir,
}

/// `Err` says why guests can't be run here.
pub static IMAGE: LazyLock<Result<Image, String>> = LazyLock::new(|| {
    let kernel = env::var_os("KATA_TEST_KERNEL").map(PathBuf::from).filter(|path| path.exists());
    let kernel = kernel.ok_or("KATA_TEST_KERNEL names no guest kernel")?;
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    if !Path::new(super::QEMU).exists() {
        return Err(format!("no {}", super::QEMU));
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let initrd = build(directory.path()).map_err(|error| format!("no test initrd: {error}"))?;
    Ok(Image { kernel, initrd, _directory: directory })
});

fn build(directory: &Path) -> io::Result<PathBuf> {
    let init = directory.join("init");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/init.c");
    let flags = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O2", "-o"];
    let status = Command::new("gcc").args(flags).arg(&init).arg(source).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("gcc: {status}")));
    }
    let mut archive = Vec::new();
    for directory in ["dev", "proc", "sys", "mnt"] {
        entry(&mut archive, directory, (0o40755, 0), &[]);
    }
    entry(&mut archive, "dev/console", (0o20600, 0x0005_0001), &[]);
    entry(&mut archive, "init", (0o100_755, 0), &fs::read(init)?);
    entry(&mut archive, "TRAILER!!!", (0, 0), &[]);
    let initrd = directory.join("initrd");
    fs::write(&initrd, archive)?;
    Ok(initrd)
}

/// One entry of a "newc" cpio archive: mode, and device as major << 16 | minor.
fn entry(archive: &mut Vec<u8>, name: &str, (mode, device): (u32, u32), content: &[u8]) {
    let (size, length) = (content.len() as u32, name.len() as u32 + 1);
    let (major, minor) = (device >> 16, device & 0xffff);
    archive.extend(b"070701");
    for field in [0, mode, 0, 0, 1, 0, size, 0, 0, major, minor, length, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
