//! Bulk data through standard output and input of a container, over the same through a bare VM's vsock connection, which
//! the same proxy serves. From the first byte to the last; the boot is not in it.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};

use super::bare::Prepared;
use super::container::{Container, Source};
use super::patience;
use super::report::{Report, Target};
use super::sample::Pair;
use super::stand::Stand;
use super::vmm_line::VmmLine;

const ROUNDS: usize = 5;
const LENGTH: usize = 64 << 20;
const BLOCK: usize = 64 << 10;

/// A port that the proxy accepts and that no agent is there to use.
const PORT: u32 = 1025;

pub fn measure(stand: &Stand, line: &VmmLine, report: &mut Report) -> Result<()> {
    let length = LENGTH.to_string();
    let send = line.clone().with_task(&format!("send,{PORT},{length}"));
    let receive = line.clone().with_task(&format!("receive,{PORT},{length}"));
    let [mut raw_out, mut out, mut raw_in, mut into] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let vm = Prepared::new(stand, &send)?.boot(stand)?;
        raw_out.push(drain(&vm.connection()?)?);
        drop(vm);
        let container = Container::start(stand, Source::Root(&["send", &length]))?;
        out.push(drain(&container.stdout)?);
        container.finish()?;
        let vm = Prepared::new(stand, &receive)?.boot(stand)?;
        let connection = vm.connection()?;
        raw_in.push(feed(&connection, |block| {
            (&connection).write_all(block).context("write to the guest")
        })?);
        drop(vm);
        into.push(feed_container(stand, &length)?);
    }
    for (name, bare, kata) in [("stdout", raw_out, out), ("stdin", raw_in, into)] {
        let pair = Pair { bare, kata, unit: "MB/s" };
        pair.note([format!("{name}: raw vsock"), format!("{name}: container")], report)?;
        let (title, ratio) = (format!("{name} over raw vsock"), pair.ratio()?);
        match name {
            "stdout" => report.add_judged(title, "x", &ratio, Target::AtLeast(0.7)),
            _ => report.add(title, "x", &ratio),
        }
    }
    Ok(())
}

fn feed_container(stand: &Stand, length: &str) -> Result<f64> {
    let mut container = Container::start(stand, Source::Root(&["receive", length]))?;
    let output = container.stdout.as_fd().try_clone_to_owned().context("share the output")?;
    let rate = feed(&output, |block| container.write(block))?;
    container.finish()?;
    Ok(rate)
}

/// Reads all that comes; MB/s between the first and the last byte.
fn drain(from: impl AsFd) -> Result<f64> {
    let mut buffer = vec![0; BLOCK];
    let mut got = patience::read(&from, &mut buffer, "the first block")?;
    let started = Instant::now();
    let first = got;
    while got < LENGTH {
        got += patience::read(&from, &mut buffer, "the next block")?;
    }
    Ok(rate(got - first, started))
}

/// Writes once the guest is ready to read, until it says that it has all.
fn feed(word: impl AsFd, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<f64> {
    let mut byte = [0];
    patience::read(&word, &mut byte, "the guest's word that it is ready")?;
    let block = [b'x'; BLOCK];
    let started = Instant::now();
    for _ in 0..LENGTH / BLOCK {
        write(&block)?;
    }
    patience::read(&word, &mut byte, "the guest's word that it has all")?;
    Ok(rate(LENGTH, started))
}

fn rate(bytes: usize, started: Instant) -> f64 {
    bytes as f64 / 1e6 / started.elapsed().as_secs_f64()
}
