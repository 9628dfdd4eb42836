//! The root of a container: prepared from outside, then entered for good.

use std::{collections::BTreeSet, os::fd::OwnedFd, path::Path};

use kata_sys::mount_attr::Reach;
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountPropagationFlags as Propagation, UnmountFlags, mount_change, unmount},
    process::{fchdir, pivot_root},
};

use super::{
    devices,
    mounts::{self, Masks},
    options::Extent,
    paths::{Leaf, Root},
    sources::Sources,
    terminal,
};
use crate::{
    boot::CONTAINER_ROOT,
    order::{Failure, Step},
    spec::{Linux, Spec},
};

/// Makes the tree of `sources` the root of this process and its mount namespace.
pub fn enter(spec: &Spec, linux: &Linux, sources: Sources) -> Result<(), Failure> {
    // Nothing that is mounted from here on may reach the agent's namespace.
    mount_change("/", Propagation::PRIVATE | Propagation::REC).step(|| "isolate mounts")?;
    let root = attach_root(&sources.root).step(|| "mount the root")?;
    let unfinished = mounts::make_all(&root, &spec.mounts, &sources)?;
    if !mounts::brings_devices(&spec.mounts) {
        devices::make_all(&root, &linux.devices, (&sources.devices, &sources.nodes))?;
        if spec.process.as_ref().is_some_and(|process| process.terminal) {
            drop(terminal::make_place(&root)?);
        }
    }
    drop(sources);
    pivot(&root).step(|| "enter the root")?;
    drop(root);
    let root = Root::open(Path::new("/")).step(|| "open the root")?;
    if let Some(process) = &spec.process {
        // As long as something can be made in a root, or in a tmpfs, that is to be read-only.
        make_working_directory(&root, &process.cwd)?;
    }
    for mount in unfinished {
        mounts::make_read_only(&mount, Reach::Mount).step(|| "make a tmpfs read-only")?;
    }
    cover_paths(&root, linux)?;
    finish(&root, spec, linux).step(|| "finish the root")
}

/// Attaches the root's mount where everybody may look; its attributes are the container's own.
fn attach_root(tree: &OwnedFd) -> std::io::Result<Root> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, CONTAINER_ROOT, flags, Mode::empty())?;
    mounts::attach(tree, place)?;
    mounts::propagate(tree, u64::from(Propagation::PRIVATE.bits()), Extent::Tree)?;
    Root::open(Path::new(CONTAINER_ROOT))
}

/// runc makes a working directory that the image lacks, and images rely on it.
fn make_working_directory(root: &Root, path: &str) -> Result<(), Failure> {
    if root.find(Path::new(path)).is_ok() {
        return Ok(());
    }
    root.make(Path::new(path), Leaf::Directory)
        .map(drop)
        .step(|| format!("make working directory {path}"))
}

fn pivot(root: &Root) -> std::io::Result<()> {
    fchdir(root.directory())?;
    // The old root ends up on top of the new one, where one detach takes it away.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn cover_paths(root: &Root, linux: &Linux) -> Result<(), Failure> {
    for path in &linux.readonly_paths {
        mounts::protect(root, Path::new(path)).step(|| format!("make {path} read-only"))?;
    }
    if linux.masked_paths.is_empty() {
        return Ok(());
    }
    let null = root.find(Path::new("/dev/null")).step(|| "find /dev/null")?;
    if !mounts::is_null_device(&null) {
        return Err(Failure::invalid(
            "/dev/null of the container is no null device: can't mask paths",
        ));
    }
    let mut masks = Masks::new(null);
    // Twice the same needs no second cover.
    for path in linux.masked_paths.iter().collect::<BTreeSet<_>>() {
        masks.mask(root, Path::new(path)).step(|| format!("mask {path}"))?;
    }
    Ok(())
}

fn finish(root: &Root, spec: &Spec, linux: &Linux) -> std::io::Result<()> {
    if spec.root.as_ref().is_some_and(|root| root.readonly) {
        mounts::make_read_only(root.directory(), Reach::Mount)?;
    }
    // All mounts are private by now, but for those whose own options say otherwise.
    let word = linux.rootfs_propagation.as_deref().unwrap_or_default();
    let (kind, reach) = match word.strip_prefix('r') {
        Some(kind) => (kind, Propagation::REC),
        None => (word, Propagation::empty()),
    };
    let propagation = match kind {
        "private" => Propagation::PRIVATE,
        "shared" => Propagation::SHARED,
        "slave" => Propagation::DOWNSTREAM,
        "unbindable" => Propagation::UNBINDABLE,
        _ => return Ok(()),
    };
    mount_change("/", propagation | reach)?;
    Ok(())
}
