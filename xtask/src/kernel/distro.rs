//! Debian's packaged cloud kernel, unpacked into the cache beside the modules that the guest loads.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::GuestKernel;
use super::modules::WANTED;
use super::package::{self, META_PACKAGE, Package};
use crate::cache::{self, Recipe};
use crate::progress::Step;
use crate::setup::{self, Purpose};

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "1";
/// Which entry was made last, for a machine whose apt knows nothing (no lists, no network).
const LATEST: &str = "distro-latest";

/// The newest kernel that apt knows, from the cache, else fetched; without apt's lists, the newest in the cache.
pub fn make() -> Result<GuestKernel> {
    let shelf = cache::root()?.join("kernel");
    let Some(package) = Package::newest()? else {
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

fn fetch(package: &Package, draft: &Path) -> Result<()> {
    let scratch = draft.join("scratch");
    let unpacked = package.unpack(&scratch)?;
    unpacked.take_image(&draft.join("vmlinuz"))?;
    unpacked.take_modules(WANTED, &draft.join("modules"))?;
    cache::remove(&scratch)
}

fn open(entry: &Path) -> Result<GuestKernel> {
    let modules = package::in_order(&entry.join("modules"))?;
    Ok(GuestKernel { image: entry.join("vmlinuz"), modules })
}
