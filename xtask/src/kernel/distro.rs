//! Debian's packaged cloud kernel, unpacked into the cache beside the modules that the guest loads.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::GuestKernel;
use super::modules::{Available, WANTED};
use crate::cache::{self, Recipe};
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};

/// Follows Debian's security updates of the same series as the lean kernel's source.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";
/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "1";
/// Which entry was made last, for a machine whose apt knows nothing (no lists, no network).
const LATEST: &str = "distro-latest";

/// The newest kernel that apt knows, from the cache, else fetched; without apt's lists, the newest in the cache.
pub fn make() -> Result<GuestKernel> {
    let shelf = cache::root()?.join("kernel");
    let Some(package) = newest()? else {
        let hash = fs::read_to_string(shelf.join(LATEST)).with_context(|| {
            format!("apt does not know {META_PACKAGE}, and no kernel is in {}", shelf.display())
        })?;
        return open(&shelf.join(hash.trim()));
    };
    let hash = Recipe::new("distro kernel")
        .part("recipe", RECIPE_VERSION)
        .part("package", format!("{} {}", package.name, package.version))
        .part("modules", WANTED.join(" "))
        .hash();
    let entry = shelf.join(&hash);
    if !entry.is_dir() {
        let step = Step::begin(format!("fetch {} {}", package.name, package.version));
        setup::prepare(Purpose::DistroKernel)?;
        cache::fill(&entry, |draft| fetch(&package, draft))?;
        let latest = shelf.join(LATEST);
        fs::write(&latest, &hash).with_context(|| format!("write {}", latest.display()))?;
        step.end("unpacked");
    }
    open(&entry)
}

/// A binary package of one version.
struct Package {
    name: String,
    version: String,
}

/// What the meta-package stands for; refreshes apt's lists once when they do not know it.
fn newest() -> Result<Option<Package>> {
    if known().is_none() {
        setup::update_lists()?;
    }
    Ok(known())
}

fn known() -> Option<Package> {
    let depends = setup::candidate(META_PACKAGE, "Depends")?;
    // "linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)"
    let (name, rest) = depends.split_once(" (= ")?;
    let version = rest.split_once(')')?.0;
    Some(Package { name: name.to_owned(), version: version.to_owned() })
}

fn fetch(package: &Package, draft: &Path) -> Result<()> {
    let scratch = draft.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let wanted = format!("{}={}", package.name, package.version);
    Run::new("apt-get").args(["download", "-q", &wanted]).cwd(&scratch).output()?;
    let archive = only_file(&scratch, "deb")?;
    let unpacked = scratch.join("root");
    Run::new("dpkg-deb")
        .args(["-x".as_ref(), archive.as_os_str(), unpacked.as_os_str()])
        .output()?;
    let Some(release) = package.name.strip_prefix("linux-image-") else {
        bail!("{} is not named like a kernel", package.name);
    };
    let (from, to) = (unpacked.join(format!("boot/vmlinuz-{release}")), draft.join("vmlinuz"));
    fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
    take_modules(&unpacked, release, &draft.join("modules"))?;
    cache::remove(&scratch)
}

fn take_modules(unpacked: &Path, release: &str, to: &Path) -> Result<()> {
    // Debian 12 ships modules under /lib, Debian 13 under /usr/lib.
    let usr = unpacked.join("usr");
    let base = if usr.join("lib/modules").is_dir() { usr.as_path() } else { unpacked };
    Run::new("depmod").args(["-b".as_ref(), base.as_os_str(), release.as_ref()]).output()?;
    let from = base.join("lib/modules").join(release);
    let read = |name: &str| {
        let path = from.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let available = Available::parse(&read("modules.dep")?, &read("modules.builtin")?);
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let mut order = String::new();
    for file in available.load_order(WANTED)? {
        let name = decompress(&from.join(&file), to)?;
        order.push_str(&format!("{name}\n"));
    }
    let list = to.join("order");
    fs::write(&list, order).with_context(|| format!("write {}", list.display()))
}

/// Writes a module uncompressed into a directory and gives its file name.
fn decompress(file: &Path, to: &Path) -> Result<String> {
    let name = file.file_name().context("a module without a name")?.to_string_lossy();
    let module = match name.strip_suffix(".xz") {
        Some(_) => Run::new("xz").args(["-dc".as_ref(), file.as_os_str()]).quietly().bytes()?,
        None => fs::read(file).with_context(|| format!("read {}", file.display()))?,
    };
    let name = name.strip_suffix(".xz").unwrap_or(&name);
    let path = to.join(name);
    let mut out = fs::File::create(&path).with_context(|| format!("write {}", path.display()))?;
    out.write_all(&module).with_context(|| format!("write {}", path.display()))?;
    Ok(name.to_owned())
}

fn open(entry: &Path) -> Result<GuestKernel> {
    let modules = entry.join("modules");
    let list = modules.join("order");
    let order = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    Ok(GuestKernel {
        image: entry.join("vmlinuz"),
        modules: order.lines().map(|name| modules.join(name)).collect(),
    })
}

fn only_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("no .{extension} file in {}", directory.display()))
}
