//! Guest kernels: where they come from is kernel/README.md's to tell.

mod distro;
mod fragments;
mod lean;
mod modules;
pub mod package;

use std::path::PathBuf;

use anyhow::Result;

use crate::args::Profile;
use crate::layout::Workspace;

/// A kernel in the cache, ready to boot.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    pub image: PathBuf,
    /// Uncompressed modules that the guest must load, in load order.
    pub modules: Vec<PathBuf>,
}

/// The kernel of a profile: from the cache, else made.
pub fn make(workspace: &Workspace, profile: Profile) -> Result<GuestKernel> {
    let kernel = match profile {
        Profile::Lean => lean::make(workspace)?,
        Profile::Distro => distro::make()?,
    };
    println!("    kernel: {}", kernel.image.display());
    Ok(kernel)
}

/// The profile that is quickest to have: `Lean` when it is in the cache, else `Distro`.
pub fn quickest(workspace: &Workspace) -> Result<Profile> {
    Ok(if lean::is_ready(workspace)? { Profile::Lean } else { Profile::Distro })
}
