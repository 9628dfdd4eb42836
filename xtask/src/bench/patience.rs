//! Reading with an end to patience: a measurement that hangs is an error that says where.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longer than anything here takes on a loaded machine under emulation.
const LIMIT: Duration = Duration::from_secs(180);

/// Waits until `fd` can be read.
pub fn await_readable(fd: impl AsFd, what: &str) -> Result<()> {
    let limit = Timespec::try_from(LIMIT).context("convert a timeout")?;
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))
        .with_context(|| format!("wait for {what}"))?;
    if ready == 0 {
        bail!("{what} did not come within {} s", LIMIT.as_secs());
    }
    Ok(())
}

/// One read; an end is an error that says what is missing.
pub fn read(fd: impl AsFd, buffer: &mut [u8], what: &str) -> Result<usize> {
    await_readable(&fd, what)?;
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut *buffer));
    match read.with_context(|| format!("read {what}"))? {
        0 => bail!("there is an end where {what} should be"),
        length => Ok(length),
    }
}

/// Text up to a line that begins with `start`, which is returned.
pub fn read_line(fd: impl AsFd, start: &str) -> Result<String> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let what = format!("a line that begins with {start:?}");
        let length = read(&fd, &mut buffer, &what)
            .with_context(|| format!("after {:?}", String::from_utf8_lossy(&text)))?;
        text.extend_from_slice(&buffer[..length]);
        let whole = String::from_utf8_lossy(&text);
        let mut lines = whole.split_inclusive('\n');
        if let Some(line) = lines.find(|line| line.starts_with(start) && line.ends_with('\n')) {
            return Ok(line.trim_end().to_owned());
        }
    }
}
