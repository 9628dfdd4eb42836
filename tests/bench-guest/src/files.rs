//! Small files: read those that are there, and make as many.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, mount};

const SIZE: usize = 4096;

/// Where a bare guest has its disk.
const DISK: &str = "/dev/vda";

/// Reads each file of `DIRECTORY/read`, makes as many in `DIRECTORY/made`, and prints both times in nanoseconds.
pub fn measure(directory: &Path, bare: bool) -> io::Result<()> {
    if bare {
        fs::create_dir_all(directory)?;
        mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None)?;
        mount(DISK, directory, "ext4", MountFlags::empty(), None)?;
    }
    let (count, read) = read(&directory.join("read"))?;
    let made = make(&directory.join("made"), count)?;
    // A console may have words of the kernel before it.
    let line = format!("files {count} {} {}\n", read.as_nanos(), made.as_nanos());
    io::stdout().write_all(line.as_bytes())
}

fn read(directory: &Path) -> io::Result<(usize, Duration)> {
    let started = Instant::now();
    let (mut count, mut buffer) = (0, [0; SIZE]);
    for entry in fs::read_dir(directory)? {
        File::open(entry?.path())?.read_exact(&mut buffer)?;
        count += 1;
    }
    Ok((count, started.elapsed()))
}

fn make(directory: &Path, count: usize) -> io::Result<Duration> {
    let started = Instant::now();
    fs::create_dir(directory)?;
    for number in 0..count {
        File::create_new(directory.join(number.to_string()))?.write_all(&[b'x'; SIZE])?;
    }
    Ok(started.elapsed())
}
