//! The host's kernel, modules and disk, made once and kept in the cache.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::debian::Debian;
use super::make_disk;
use crate::cache::{self, Recipe};
use crate::kernel::package::{self, META_PACKAGE, Package};
use crate::process::Run;
use crate::progress::Step;
use crate::test::roots;

/// Change it when the steps below change what comes out.
const RECIPE_VERSION: &str = "2";
/// Which entry was made last, for a machine whose apt knows nothing (no lists, no network).
const LATEST: &str = "latest";
/// The release after the outer machine's: other programs around Kata, QEMU 10.0 too.
const RELEASE: &str = "trixie";
const SOURCES: &str = "\
deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian-security trixie-security main
deb [check-valid-until=no] http://deb.debian.org/debian forky main
";
/// runc 1.3, which knows what version 1.2 of the specification says; the rest from the release.
const PREFERENCES: &str = "\
Package: *
Pin: release n=forky
Pin-Priority: 1

Package: runc
Pin: release n=forky
Pin-Priority: 900
";
/// What a host of guests has, and what the tests run on it.
const PACKAGES: &str = "busybox-static,containerd,containernetworking-plugins,e2fsprogs,iproute2,\
                        iptables,iputils-ping,kmod,nftables,procps,qemu-system-x86,runc,socat,\
                        strace,util-linux,wireguard-tools";
/// What the kernel has as modules and needs to mount its disk.
const BOOT_MODULES: &[&str] = &["virtio_blk"];
/// Of the disk; what is not used of it takes no room.
const SIZE: &str = "8G";

/// Where the roots that guests boot are, on the host's disk: `busybox`, `debian`.
pub const ROOTS: &str = "/roots";

/// A host that can be booted.
pub struct Host {
    pub kernel: PathBuf,
    /// In load order.
    pub modules: Vec<PathBuf>,
    pub disk: PathBuf,
}

/// The host with the newest kernel that apt knows, from the cache, else made; without apt's lists, the newest in the cache.
pub fn make() -> Result<Host> {
    let shelf = cache::root()?.join("nested");
    let roots = [("busybox", roots::busybox()?), ("debian", roots::debian()?)];
    let Some(package) = Package::newest()? else {
        let hash = fs::read_to_string(shelf.join(LATEST)).with_context(|| {
            format!("apt does not know {META_PACKAGE}, and no host is in {}", shelf.display())
        })?;
        return open(&shelf.join(hash.trim()));
    };
    let mut recipe = Recipe::new("nested host")
        .part("recipe", RECIPE_VERSION)
        .part("kernel", format!("{} {}", package.name, package.version))
        .part("sources", SOURCES)
        .part("preferences", PREFERENCES)
        .part("packages", PACKAGES)
        .part("size", SIZE)
        .part("boot modules", BOOT_MODULES.join(" "));
    for (name, root) in &roots {
        recipe = recipe.part(name, root.file_name().unwrap_or_default().as_encoded_bytes());
    }
    let hash = recipe.hash();
    let entry = shelf.join(&hash);
    if !entry.is_dir() {
        let step = Step::begin(format!("make the disk of a nested host with {}", package.name));
        cache::fill(&entry, |draft| fill(draft, &package, &roots))?;
        let latest = shelf.join(LATEST);
        fs::write(&latest, &hash).with_context(|| format!("write {}", latest.display()))?;
        step.end(entry.display().to_string());
    }
    open(&entry)
}

fn open(entry: &Path) -> Result<Host> {
    Ok(Host {
        kernel: entry.join("vmlinuz"),
        modules: package::in_order(&entry.join("modules"))?,
        disk: entry.join("disk.img"),
    })
}

fn fill(draft: &Path, package: &Package, roots: &[(&str, PathBuf)]) -> Result<()> {
    let scratch = draft.join("scratch");
    let unpacked = package.unpack(&scratch.join("kernel"))?;
    unpacked.take_image(&draft.join("vmlinuz"))?;
    unpacked.take_modules(BOOT_MODULES, &draft.join("modules"))?;
    let tree = scratch.join("tree");
    bootstrap(&scratch, &tree)?;
    copy(&unpacked.modules(), &tree.join("usr/lib/modules").join(&unpacked.release))?;
    for (name, root) in roots {
        copy(root, &tree.join(ROOTS.trim_start_matches('/')).join(name))?;
    }
    make_disk(&tree, &draft.join("disk.img"), SIZE)?;
    cache::remove(&scratch)
}

fn bootstrap(scratch: &Path, tree: &Path) -> Result<()> {
    let debian = Debian {
        variant: "minbase",
        release: RELEASE,
        sources: SOURCES,
        preferences: PREFERENCES,
        packages: PACKAGES,
        log: "nested-host.log",
    };
    debian.make(scratch, tree, |line| {
        if let Some(said) = line.strip_prefix("I: ") {
            println!("    {said}");
        }
    })?;
    // What apt has fetched is not needed any more, and half of the whole.
    for directory in ["var/cache/apt", "var/lib/apt/lists"] {
        cache::remove(&tree.join(directory))?;
    }
    Ok(())
}

/// Copies a tree, as `to`, which must not exist.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let words: [&OsStr; 3] = ["-a".as_ref(), from.as_os_str(), to.as_os_str()];
    Run::new("cp").args(words).quietly().output().map(drop)
}
