//! The lean kernel: Debian's source, our fragments over `allnoconfig`, one stripped `vmlinux` with a PVH entry.
//!
//! Equal fragments, source and recipe give equal bytes: names, paths and times of the building machine are fixed or
//! mapped away. An interrupted build goes on where it was.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::GuestKernel;
use super::fragments::Fragments;
use crate::cache::{self, Recipe};
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, KERNEL_SOURCE, Purpose};

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "1";
/// Objects that make says it compiles, for the estimate of the time that is left; counted once.
const EXPECTED_OBJECTS: usize = 1697;

/// Whether the kernel is in the cache.
pub fn is_ready(workspace: &Workspace) -> Result<bool> {
    let Some(version) = source_version() else { return Ok(false) };
    Ok(entry(&fragments(workspace)?, &version)?.join("vmlinux").is_file())
}

/// The kernel from the cache, else built.
pub fn make(workspace: &Workspace) -> Result<GuestKernel> {
    let fragments = fragments(workspace)?;
    if let Some(version) = source_version() {
        let image = entry(&fragments, &version)?.join("vmlinux");
        if image.is_file() {
            return Ok(kernel(image));
        }
    }
    setup::prepare(Purpose::LeanKernel)?;
    let version = setup::installed_version(KERNEL_SOURCE)
        .with_context(|| format!("{KERNEL_SOURCE} is not installed"))?;
    let entry = entry(&fragments, &version)?;
    let image = entry.join("vmlinux");
    if !image.is_file() {
        let step = Step::begin(format!("build the lean kernel from {KERNEL_SOURCE} {version}"));
        build(&fragments, &entry)?;
        step.end("built");
    }
    Ok(kernel(image))
}

fn kernel(image: PathBuf) -> GuestKernel {
    GuestKernel { image, modules: Vec::new() }
}

fn fragments(workspace: &Workspace) -> Result<Fragments> {
    Fragments::read(&workspace.root().join("kernel/lean"))
}

/// The version of the source that is installed, else the one that would be.
fn source_version() -> Option<String> {
    setup::installed_version(KERNEL_SOURCE).or_else(|| setup::candidate(KERNEL_SOURCE, "Version"))
}

fn entry(fragments: &Fragments, version: &str) -> Result<PathBuf> {
    let hash = Recipe::new("lean kernel")
        .part("recipe", RECIPE_VERSION)
        .part("source", version)
        .part("fragments", fragments.text())
        .hash();
    Ok(cache::root()?.join("kernel").join(hash))
}

fn build(fragments: &Fragments, entry: &Path) -> Result<()> {
    let work = entry.with_extension("work");
    let _only_one = cache::lock(&work)?;
    if entry.is_dir() {
        return Ok(());
    }
    let archive = PathBuf::from(format!("/usr/src/{KERNEL_SOURCE}.tar.xz"));
    let source = unpack(&archive, &work)?;
    let tree = Tree { source, output: work.join("output"), date: date_of(&archive)? };
    tree.configure(fragments)?;
    tree.compile()?;
    cache::fill(entry, |draft| {
        let (from, to) = (tree.output.join("vmlinux"), draft.join("vmlinux"));
        Run::new("strip").args(["-o".as_ref(), to.as_os_str(), from.as_os_str()]).output()?;
        let (from, to) = (tree.output.join(".config"), draft.join("config"));
        fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        Ok(())
    })?;
    cache::remove(&work)
}

/// Unpacks the source once; the rename makes it whole or absent.
fn unpack(archive: &Path, work: &Path) -> Result<PathBuf> {
    let source = work.join("source");
    if !source.is_dir() {
        let step = Step::begin("unpack the kernel's source");
        cache::fill(&source, |draft| {
            let place = ["-C".as_ref(), draft.as_os_str(), "--strip-components=1".as_ref()];
            Run::new("tar").args(["-xf".as_ref(), archive.as_os_str()]).args(place).output()?;
            Ok(())
        })?;
        step.end("done");
    }
    Ok(source)
}

/// The date of Debian's package as the kernel shows it in `uname -v`.
fn date_of(archive: &Path) -> Result<String> {
    let reference = format!("--reference={}", archive.display());
    let date = Run::new("date").args(["-u", &reference]).env("LC_ALL", "C").quietly().output()?;
    Ok(date.trim().to_owned())
}

/// The unpacked source, and where its objects go.
struct Tree {
    source: PathBuf,
    output: PathBuf,
    date: String,
}

impl Tree {
    fn configure(&self, fragments: &Fragments) -> Result<()> {
        let step = Step::begin("configure");
        fs::create_dir_all(&self.output)
            .with_context(|| format!("make {}", self.output.display()))?;
        let wanted = self.output.join("wanted.config");
        fs::write(&wanted, fragments.text())
            .with_context(|| format!("write {}", wanted.display()))?;
        self.make_command()
            .env("KCONFIG_ALLCONFIG", &wanted)
            .args(["allnoconfig"])
            .logged(&self.output.join("configure.log"))?;
        let config = self.output.join(".config");
        let made =
            fs::read_to_string(&config).with_context(|| format!("read {}", config.display()))?;
        fragments.check(&made)?;
        step.end("every symbol took");
        Ok(())
    }

    fn compile(&self) -> Result<()> {
        let mut step = Step::begin("compile");
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut objects = 0;
        self.make_command().args([format!("-j{jobs}"), "vmlinux".to_owned()]).streamed(
            &self.output.join("build.log"),
            |line| {
                if line.starts_with("  CC ") || line.starts_with("  AS ") {
                    objects += 1;
                    step.advance(objects, EXPECTED_OBJECTS);
                }
            },
        )?;
        step.end(format!("{objects} objects"));
        Ok(())
    }

    fn make_command(&self) -> Run {
        let output = format!("O={}", self.output.display());
        Run::new("make")
            .args(["-C".as_ref(), self.source.as_os_str()])
            .args([output.as_str(), "ARCH=x86", "LOCALVERSION="])
            .env("LC_ALL", "C")
            .env("KBUILD_BUILD_TIMESTAMP", &self.date)
            .env("KBUILD_BUILD_USER", "kata")
            .env("KBUILD_BUILD_HOST", "kata")
            .env("KBUILD_BUILD_VERSION", "1")
    }
}
