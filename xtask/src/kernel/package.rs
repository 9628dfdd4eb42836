//! Debian's packaged cloud kernel: which one is the newest, what is in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::modules::Available;
use crate::process::Run;
use crate::setup;

/// Follows Debian's security updates of the same series as the lean kernel's source.
pub const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// A binary package of one version.
pub struct Package {
    pub name: String,
    pub version: String,
}

impl Package {
    /// What the meta-package stands for; refreshes apt's lists once when they do not know it.
    pub fn newest() -> Result<Option<Self>> {
        if Self::known().is_none() {
            setup::update_lists()?;
        }
        Ok(Self::known())
    }

    fn known() -> Option<Self> {
        let depends = setup::candidate(META_PACKAGE, "Depends")?;
        // "linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)"
        let (name, rest) = depends.split_once(" (= ")?;
        let version = rest.split_once(')')?.0;
        Some(Self { name: name.to_owned(), version: version.to_owned() })
    }

    /// Fetches it and unpacks it below `scratch`.
    pub fn unpack(&self, scratch: &Path) -> Result<Unpacked> {
        fs::create_dir_all(scratch).with_context(|| format!("make {}", scratch.display()))?;
        let wanted = format!("{}={}", self.name, self.version);
        Run::new("apt-get").args(["download", "-q", &wanted]).cwd(scratch).output()?;
        let archive = only_file(scratch, "deb")?;
        let root = scratch.join("root");
        Run::new("dpkg-deb")
            .args(["-x".as_ref(), archive.as_os_str(), root.as_os_str()])
            .output()?;
        let Some(release) = self.name.strip_prefix("linux-image-") else {
            bail!("{} is not named like a kernel", self.name);
        };
        // Debian 12 ships modules under /lib, Debian 13 under /usr/lib.
        let usr = root.join("usr");
        let base = if usr.join("lib/modules").is_dir() { usr } else { root.clone() };
        Run::new("depmod").args(["-b".as_ref(), base.as_os_str(), release.as_ref()]).output()?;
        Ok(Unpacked { root, base, release: release.to_owned() })
    }
}

/// A package's files.
pub struct Unpacked {
    root: PathBuf,
    /// Above `lib/modules`.
    base: PathBuf,
    pub release: String,
}

impl Unpacked {
    /// Copies the kernel.
    pub fn take_image(&self, to: &Path) -> Result<()> {
        let from = self.root.join("boot").join(format!("vmlinuz-{}", self.release));
        fs::copy(&from, to).with_context(|| format!("copy {}", from.display()))?;
        Ok(())
    }

    /// All of its modules, with what depmod(8) found out about them.
    pub fn modules(&self) -> PathBuf {
        self.base.join("lib/modules").join(&self.release)
    }

    /// Writes `wanted` and all that they need into a directory, uncompressed, and a file `order` beside them.
    pub fn take_modules(&self, wanted: &[&str], to: &Path) -> Result<()> {
        let from = self.modules();
        let read = |name: &str| {
            let path = from.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let available = Available::parse(&read("modules.dep")?, &read("modules.builtin")?);
        fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
        let mut order = String::new();
        for file in available.load_order(wanted)? {
            let name = decompress(&from.join(&file), to)?;
            order.push_str(&format!("{name}\n"));
        }
        let list = to.join("order");
        fs::write(&list, order).with_context(|| format!("write {}", list.display()))
    }
}

/// The modules that [`Unpacked::take_modules`] wrote, in their order.
pub fn in_order(modules: &Path) -> Result<Vec<PathBuf>> {
    let list = modules.join("order");
    let order = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    Ok(order.lines().map(|name| modules.join(name)).collect())
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

fn only_file(directory: &Path, extension: &str) -> Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .with_context(|| format!("no .{extension} file in {}", directory.display()))
}
