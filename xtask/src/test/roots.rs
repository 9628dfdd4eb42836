//! The root file systems that tests and `make run` boot, made once and kept in the cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{self, Recipe};
use crate::process::Run;
use crate::progress::Step;

/// Change it when the steps of a root below change what comes out.
const RECIPE_VERSION: &str = "1";
const BUSYBOX: &str = "/bin/busybox";
const DEBIAN_RELEASE: &str = "bookworm";
/// Beyond the minimal system, what the guest tests run in it.
const DEBIAN_PACKAGES: &str =
    "iproute2,iputils-ping,nginx-light,procps,python3,redis-server,redis-tools";

/// A root with a static busybox and a link for each of its commands.
pub fn busybox() -> Result<PathBuf> {
    let program = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let recipe =
        Recipe::new("busybox root").part("recipe", RECIPE_VERSION).part("busybox", &program);
    let root = cache::root()?.join("root").join(format!("busybox-{}", recipe.hash()));
    if !root.is_dir() {
        let step = Step::begin("make a root with busybox");
        cache::fill(&root, |draft| lay_out_busybox(draft, &program))?;
        step.end(root.display().to_string());
    }
    Ok(root)
}

fn lay_out_busybox(root: &Path, program: &[u8]) -> Result<()> {
    for name in
        ["bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"]
    {
        let directory = root.join(name);
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let write = |name: &str, text: &[u8]| {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("bin/busybox", program)?;
    Run::new("chmod")
        .args(["755".as_ref(), root.join("bin/busybox").as_os_str()])
        .quietly()
        .output()?;
    Run::new("chmod").args(["1777".as_ref(), root.join("tmp").as_os_str()]).quietly().output()?;
    write(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")?;
    let list = Run::new(root.join("bin/busybox")).args(["--list"]).quietly().output()?;
    for command in list.lines().filter(|command| *command != "busybox") {
        let link = root.join("bin").join(command);
        symlink("busybox", &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}

/// A minimal Debian with Python and network tools.
pub fn debian() -> Result<PathBuf> {
    let recipe = Recipe::new("debian root")
        .part("recipe", RECIPE_VERSION)
        .part("release", DEBIAN_RELEASE)
        .part("packages", DEBIAN_PACKAGES);
    let root = cache::root()?.join("root").join(format!("debian-{}", recipe.hash()));
    if !root.is_dir() {
        let step = Step::begin(format!("make a root with Debian {DEBIAN_RELEASE}"));
        let log = cache::root()?.join("logs/debian-root.log");
        cache::fill(&root, |draft| {
            let include = format!("--include={DEBIAN_PACKAGES}");
            Run::new("mmdebstrap")
                .args([
                    "--variant=minbase",
                    "--format=directory",
                    "--mode=root",
                    &include,
                    DEBIAN_RELEASE,
                ])
                .args([draft.as_os_str()])
                .streamed(&log, |line| {
                    if let Some(said) = line.strip_prefix("I: ") {
                        println!("    {said}");
                    }
                })
        })?;
        step.end(root.display().to_string());
    }
    Ok(root)
}
