//! Set-up: installs from Debian what is missing, and only that; without anything to do it needs no network.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::build::replace_file;
use crate::cache;
use crate::process::{Run, is_in_path};
use crate::progress::Step;

/// What the programs are built with: libraries of C that are linked in statically, and a linker.
const BUILD: &[&str] = &["gcc", "libc6-dev", "libcap-ng-dev", "libseccomp-dev"];

/// What the kernel is built with, and its source.
pub const KERNEL_SOURCE: &str = "linux-source-6.12";
const KERNEL: &[&str] = &[
    "bc",
    "bison",
    "cpio",
    "flex",
    "gcc",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "lz4",
    "make",
    "xz-utils",
    KERNEL_SOURCE,
];

/// What unpacks Debian's packaged kernel.
const DISTRO_KERNEL: &[&str] = &["kmod", "xz-utils"];

/// What the tests run beside Kata: a root to boot, another runtime to compare with, tools to look and to break with.
const TEST: &[&str] = &[
    "busybox-static",
    "cpio",
    "iproute2",
    "iputils-ping",
    "mmdebstrap",
    "procps",
    "runc",
    "socat",
    "strace",
    "util-linux",
];

/// The engines that Kata runs below, and what they need that Debian only recommends.
const ENGINES: &[&str] = &[
    "aardvark-dns",
    "buildah",
    "catatonit",
    "conmon",
    "containernetworking-plugins",
    "docker.io",
    "iptables",
    "netavark",
    "nftables",
    "podman",
];

/// What makes the disks of the nested host.
const NESTED: &[&str] = &["busybox-static", "e2fsprogs", "kmod", "mmdebstrap", "xz-utils"];

const QEMU: &str = "qemu-system-x86";
/// The first release with everything that the QEMU driver uses; Debian 12 itself has 7.2.
const QEMU_MAJOR: u32 = 10;
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/kata-backports.list";

/// What is to be done with what set-up installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Build,
    LeanKernel,
    DistroKernel,
    /// Booting a VM from a root that `run` makes.
    Boot,
    /// Measuring.
    Bench,
    /// Booting a host of guests in a VM.
    Nested,
    /// Running below engines.
    Engines,
    Everything,
}

/// Installs what `purpose` needs and this machine lacks.
pub fn prepare(purpose: Purpose) -> Result<()> {
    let packages: Vec<&str> = match purpose {
        Purpose::Build => BUILD.to_vec(),
        Purpose::LeanKernel => KERNEL.to_vec(),
        Purpose::DistroKernel => DISTRO_KERNEL.to_vec(),
        Purpose::Boot => vec!["busybox-static"],
        Purpose::Bench => vec!["e2fsprogs"],
        Purpose::Nested => NESTED.to_vec(),
        Purpose::Engines => [BUILD, KERNEL, TEST, ENGINES].concat(),
        Purpose::Everything => [BUILD, KERNEL, TEST, NESTED, ENGINES].concat(),
    };
    let missing = missing(&packages)?;
    if !missing.is_empty() {
        let step = Step::begin(format!("install from Debian: {}", missing.join(" ")));
        require_root(&missing)?;
        update_lists()?;
        install(&missing, &[])?;
        step.end(format!("{} packages", missing.len()));
    }
    let boots =
        [Purpose::Boot, Purpose::Bench, Purpose::Nested, Purpose::Engines, Purpose::Everything];
    if boots.contains(&purpose) {
        prepare_qemu()?;
    }
    Ok(())
}

fn prepare_qemu() -> Result<()> {
    if installed_qemu().is_some_and(|major| major >= QEMU_MAJOR) {
        return Ok(());
    }
    let step = Step::begin(format!("install QEMU {QEMU_MAJOR} or later"));
    require_root(&[QEMU])?;
    update_lists()?;
    let release = debian_release()?;
    let mut from = Vec::new();
    if release == "bookworm" {
        if !has_backports()? {
            let line = "deb http://deb.debian.org/debian bookworm-backports main\n";
            fs::write(BACKPORTS_LIST, line).with_context(|| format!("write {BACKPORTS_LIST}"))?;
            println!("    added {BACKPORTS_LIST}");
            update_lists()?;
        }
        from = vec!["-t", "bookworm-backports"];
    }
    install(&[QEMU], &from)?;
    match installed_qemu() {
        Some(major) if major >= QEMU_MAJOR => step.end(format!("QEMU {major}")),
        Some(major) => bail!("Debian {release} has QEMU {major}; {QEMU_MAJOR} is needed"),
        None => {
            bail!("the package {QEMU} was installed, but there is no qemu-system-x86_64 in PATH")
        }
    }
    Ok(())
}

/// The major version of the QEMU in `PATH`.
fn installed_qemu() -> Option<u32> {
    if !is_in_path("qemu-system-x86_64") {
        return None;
    }
    qemu_major(&Run::new("qemu-system-x86_64").args(["--version"]).quietly().output().ok()?)
}

fn qemu_major(version: &str) -> Option<u32> {
    let rest = version.split_once("version ")?.1;
    rest.split_once('.')?.0.parse().ok()
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    if !is_in_path("dpkg-query") {
        bail!(
            "this is not Debian: install the equivalents of these yourself: {}",
            packages.join(" ")
        );
    }
    let mut missing = BTreeSet::new();
    for package in packages {
        if installed_version(package).is_none() {
            missing.insert(*package);
        }
    }
    Ok(missing.into_iter().collect())
}

/// The version of a package that is installed.
pub fn installed_version(package: &str) -> Option<String> {
    let query = ["-W", "-f", "${db:Status-Status} ${Version}", package];
    let text = Run::new("dpkg-query").args(query).quietly().output().ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

/// A field of the newest version of a package that apt knows.
pub fn candidate(package: &str, field: &str) -> Option<String> {
    let query = ["show", "--no-all-versions", package];
    let text = Run::new("apt-cache").args(query).quietly().output().ok()?;
    let prefix = format!("{field}: ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

fn require_root(packages: &[&str]) -> Result<()> {
    let id = Run::new("id").args(["-u"]).quietly().output()?;
    if id.trim() != "0" {
        bail!(
            "packages are missing and only root can install them: apt-get install {}",
            packages.join(" ")
        );
    }
    Ok(())
}

/// Refreshes the lists of packages. A source that does not answer is no failure: what is needed may be in another one,
/// and if it is not, the installation fails and says so.
pub fn update_lists() -> Result<()> {
    if let Err(error) = Run::new("apt-get").args(["update", "-q"]).output() {
        println!("    some sources of packages did not answer: {error:#}");
    }
    Ok(())
}

fn install(packages: &[&str], options: &[&str]) -> Result<()> {
    let _only_one = cache::lock(&cache::root()?.join("packages"))?;
    let _no_daemons = NoDaemons::for_now(Path::new("/usr/sbin/policy-rc.d"))?;
    let command = Run::new("apt-get")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(options)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let log = cache::root()?.join("logs/apt.log");
    command.streamed(&log, |line| {
        if line.starts_with("Need to get") || line.starts_with("Setting up") {
            println!("    {line}");
        }
    })
}

/// As long as it lives, packages start no daemon of theirs: that of an engine is not to run because a test needs its program. Debian
/// asks this file, if there is one; an administrator's stays as it is.
struct NoDaemons<'a>(Option<&'a Path>);

const NO_DAEMONS: &str = "#!/bin/sh\n# Of cargo xtask, while it installs packages.\nexit 101\n";

impl<'a> NoDaemons<'a> {
    fn for_now(policy: &'a Path) -> Result<Self> {
        match fs::read(policy) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Of a run that was killed.
            Ok(text) if text == NO_DAEMONS.as_bytes() => {}
            _ => return Ok(Self(None)),
        }
        replace_file(policy, 0o755, |out| {
            out.write_all(NO_DAEMONS.as_bytes()).context("write the policy")
        })?;
        Ok(Self(Some(policy)))
    }
}

impl Drop for NoDaemons<'_> {
    fn drop(&mut self) {
        if let Some(policy) = self.0 {
            fs::remove_file(policy).ok();
        }
    }
}

fn debian_release() -> Result<String> {
    let path = Path::new("/etc/os-release");
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(codename.unwrap_or("unknown").trim_matches('"').to_owned())
}

fn has_backports() -> Result<bool> {
    let policy = Run::new("apt-cache").args(["policy"]).quietly().output()?;
    Ok(policy.contains("bookworm-backports/main"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_of_ours_is_there_for_a_while_and_nobody_elses_is_touched() {
        let scratch = tempfile::tempdir().unwrap();
        let policy = scratch.path().join("policy-rc.d");
        for _ in 0..2 {
            let held = NoDaemons::for_now(&policy).unwrap();
            assert_eq!(fs::read_to_string(&policy).unwrap(), NO_DAEMONS);
            // As a run that is killed leaves it.
            std::mem::forget(held);
        }
        drop(NoDaemons::for_now(&policy).unwrap());
        assert!(!policy.exists());
        fs::write(&policy, [0xff]).unwrap();
        drop(NoDaemons::for_now(&policy).unwrap());
        assert_eq!(fs::read(&policy).unwrap(), [0xff]);
    }

    #[test]
    fn the_major_version_of_qemu_is_read_from_what_it_prints() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003\n";
        assert_eq!(qemu_major(text), Some(10));
        assert_eq!(qemu_major("something else"), None);
    }
}
