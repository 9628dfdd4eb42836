//! `make run`: from nothing to a container in its own VM.

use anyhow::{Result, bail};

use crate::build;
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};
use crate::test::roots;

/// Sets up, builds, boots one VM, and shows its kernel beside the host's.
pub fn demonstrate(workspace: &Workspace) -> Result<()> {
    setup::prepare(Purpose::Boot)?;
    build::everything(workspace, None)?;
    let root = roots::busybox()?;
    let step = Step::begin("run `uname -a` in a container in its own VM");
    let guest = Run::new(workspace.staged().runtime())
        .args(["run".as_ref(), "--rootfs".as_ref(), root.as_os_str()])
        .args(["--", "uname", "-a"])
        .output()?;
    step.end("exit code 0");
    let host = Run::new("uname").args(["-a"]).quietly().output()?;
    println!("\nhost:  {}\nguest: {}", host.trim(), guest.trim());
    if guest.trim().is_empty() || release(&host) == release(&guest) {
        bail!("the container did not run on a kernel of its own");
    }
    Ok(())
}

/// The kernel's release in a line of `uname -a`.
fn release(uname: &str) -> Option<&str> {
    uname.split_whitespace().nth(2)
}
