//! Small files in a container's root, over the same on ext4 on a disk of a bare VM. The guest measures.

use std::fs;

use anyhow::{Context, Result};

use super::bare::Prepared;
use super::container::{Container, Source};
use super::patience;
use super::report::Report;
use super::sample::Pair;
use super::stand::{DATA, SMALL_FILES, Stand};
use super::vmm_line::VmmLine;
use crate::build::copy_file;
use crate::process::Run;

const ROUNDS: usize = 5;
const MKFS: &str = "mkfs.ext4";

/// What a guest says it took, in milliseconds.
struct Times {
    read: f64,
    made: f64,
}

type Figure = (&'static str, fn(&Times) -> f64);

/// What of it is told, by name.
const WHICH: [Figure; 2] = [("read", |times| times.read), ("make", |times| times.made)];

pub fn measure(stand: &Stand, line: &VmmLine, report: &mut Report) -> Result<()> {
    let pristine = stand.place("pristine.img");
    // Blocks and inodes for twice the files.
    Run::new(MKFS)
        .args(["-q", "-O", "^has_journal,^metadata_csum", "-N", "4096", "-d"])
        .args([stand.root().join("data").as_os_str(), pristine.as_os_str()])
        .args(["32M"])
        .quietly()
        .output()?;
    let image = stand.place("disk.img");
    let line = line.clone().with_task(&format!("files,{DATA}")).with_disk(&image);
    let (mut bare, mut kata) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        copy_file(&pristine, &image, 0o600)?;
        bare.push(on_ext4(stand, &line)?);
        kata.push(in_container(stand)?);
    }
    for (what, which) in WHICH {
        let figures = |times: &[Times]| times.iter().map(which).collect::<Vec<_>>();
        let what = format!("{what} {SMALL_FILES} files of 4 KiB");
        let names = [format!("{what}: ext4 on virtio-blk"), format!("{what}: container root")];
        let pair = Pair { bare: figures(&bare), kata: figures(&kata), unit: "ms" };
        pair.note(names, report)?;
        report.add(format!("{what}, root over ext4"), "x", &pair.ratio()?);
    }
    Ok(())
}

fn on_ext4(stand: &Stand, line: &VmmLine) -> Result<Times> {
    let vm = Prepared::new(stand, line)?.boot(stand)?;
    understand(&patience::read_line(&vm.console, "files ")?)
}

fn in_container(stand: &Stand) -> Result<Times> {
    let container = Container::start(stand, Source::Root(&["files", DATA]))?;
    let line = patience::read_line(&container.stdout, "files ")?;
    container.finish()?;
    let made = stand.root().join("data/made");
    fs::remove_dir_all(&made).with_context(|| format!("remove {}", made.display()))?;
    understand(&line)
}

/// `files COUNT READ MADE`, times in nanoseconds.
fn understand(line: &str) -> Result<Times> {
    let mut numbers = line.split(' ').skip(1).map(str::parse::<f64>);
    let mut next = || numbers.next().and_then(Result::ok);
    let parsed = next().zip(next()).zip(next());
    let ((count, read), made) = parsed.with_context(|| format!("understand {line:?}"))?;
    anyhow::ensure!(count as usize == SMALL_FILES, "the guest found {count} files");
    Ok(Times { read: read / 1e6, made: made / 1e6 })
}
