//! Builds everything and lays it out in `target/kata` as an installation is.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::args::Profile;
use crate::image;
use crate::kernel::{self, GuestKernel};
use crate::layout::{HOST_PROGRAMS, Workspace};
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};

/// Packages of the programs that run on the host.
const HOST_PACKAGES: &[&str] = &["kata-runtime", "kata-shim", "kata-proxy"];

/// Builds programs and guest, with a kernel of `profile` or the one that is quickest to have.
pub fn everything(workspace: &Workspace, profile: Option<Profile>) -> Result<()> {
    setup::prepare(Purpose::Build)?;
    build_host_programs(workspace)?;
    let agent = image::build_agent(workspace)?;
    let profile = match profile {
        Some(profile) => profile,
        None => kernel::quickest(workspace)?,
    };
    let kernel = kernel::make(workspace, profile)?;
    let share = workspace.staged().share();
    stage_guest(&agent, &kernel, &share)?;
    println!("    built: {}", workspace.staged().runtime().display());
    Ok(())
}

/// Builds the guest of the other profile beside the first, for the tests that boot both.
pub fn distro_guest(workspace: &Workspace) -> Result<()> {
    let agent = image::build_agent(workspace)?;
    let kernel = kernel::make(workspace, Profile::Distro)?;
    stage_guest(&agent, &kernel, &workspace.staged().share().join("distro"))
}

fn build_host_programs(workspace: &Workspace) -> Result<()> {
    let step = Step::begin("build the programs of the host");
    let packages = HOST_PACKAGES.iter().flat_map(|package| ["-p", package]);
    Run::new("cargo")
        .args(["build", "--quiet", "--locked", "--release", "--bins"])
        .args(packages)
        .cwd(workspace.root())
        .attached()?;
    let (built, staged) = (workspace.built(), workspace.staged());
    for name in HOST_PROGRAMS {
        copy_file(&built.join(name), &staged.program(name), 0o755)?;
    }
    Run::new(staged.runtime().display().to_string())
        .args(["document".to_owned(), staged.0.join("share").display().to_string()])
        .attached()?;
    step.end("done");
    Ok(())
}

/// Puts a kernel and its initrd into a directory. The kernel of either profile is called `vmlinux` there, so that there
/// is one rule to find it; what it is, its first bytes tell.
fn stage_guest(agent: &Path, kernel: &GuestKernel, directory: &Path) -> Result<()> {
    copy_file(&kernel.image, &directory.join("vmlinux"), 0o644)?;
    image::build_initrd(agent, kernel, &directory.join("initrd.img"))
}

/// Copies a file over another that may be in use.
pub fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("read {}", from.display()))?;
    replace_file(to, mode, |out| {
        io::copy(&mut source, out).with_context(|| format!("copy {}", from.display()))?;
        Ok(())
    })
}

/// Writes a file beside its place and renames it: programs that run from the old one go on, and nobody sees half a file.
pub fn replace_file(
    to: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    let context = || format!("write {}", to.display());
    if let Some(directory) = to.parent() {
        make_directories(directory)?;
    }
    let mut name = to.as_os_str().to_owned();
    name.push(".new");
    let draft = Path::new(&name);
    let mut out = File::create(draft).with_context(context)?;
    write(&mut out)?;
    out.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    fs::rename(draft, to).with_context(context)
}

/// Removes a file that may not be there.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it, readable for all whatever the umask is.
fn make_directories(directory: &Path) -> Result<()> {
    if directory.as_os_str().is_empty() || directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_directories(parent)?;
    }
    let context = || format!("make the directory {}", directory.display());
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(context);
        }
        _ => {}
    }
    fs::set_permissions(directory, Permissions::from_mode(0o755)).with_context(context)
}
