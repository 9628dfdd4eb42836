//! The agent and the initrds that start it.

use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kata_image::Initrd;

use crate::args::Profile;
use crate::build;
use crate::kernel::{self, GuestKernel};
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};

/// Each guest pays for it in memory and in time to start.
const AGENT_LIMIT: u64 = 3_000_000;
/// Crates that would eat the agent's limit; features of other programs have pulled them in before.
const KEPT_OUT_OF_AGENT: &[&str] =
    &["clap", "oci-spec", "regex", "rtnetlink", "tracing-subscriber"];

/// Builds the agent and the initrds of both profiles into the target directory.
pub fn build_all(workspace: &Workspace) -> Result<()> {
    setup::prepare(Purpose::Build)?;
    let agent = build_agent(workspace)?;
    let modules = kernel::make(workspace, Profile::Distro)?.modules;
    for (name, modules) in [("lean", [].as_slice()), ("distro", &modules)] {
        let image = workspace.target().join(format!("initrd-{name}.img"));
        write_initrd(&agent, modules, &image)?;
        println!("    initrd: {}", image.display());
    }
    Ok(())
}

/// Writes the initrd that goes with a kernel.
pub fn build_initrd(agent: &Path, kernel: &GuestKernel, to: &Path) -> Result<()> {
    write_initrd(agent, &kernel.modules, to)
}

fn write_initrd(agent: &Path, modules: &[PathBuf], to: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut initrd = Initrd::new(read(agent)?);
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        initrd.add_module(&name.to_string_lossy(), read(module)?)?;
    }
    build::replace_file(to, 0o644, |out| Ok(initrd.write_to(BufWriter::new(out))?))
}

/// Builds the agent on its own, so that no other program's features get into it, and checks what came out.
pub fn build_agent(workspace: &Workspace) -> Result<PathBuf> {
    let step = Step::begin("build the agent");
    Run::new("cargo")
        .args(["build", "--quiet", "--locked", "--release", "-p", "kata-agent"])
        .cwd(workspace.root())
        .attached()?;
    let agent = workspace.built().join("kata-agent");
    let bytes = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    check_agent(&bytes)?;
    check_agent_crates(workspace)?;
    step.end(format!("{} bytes, static", bytes.len()));
    Ok(agent)
}

fn check_agent(bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > AGENT_LIMIT {
        bail!("the agent has {} bytes; the limit is {AGENT_LIMIT}", bytes.len());
    }
    match needs_interpreter(bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("the agent is not static: it names a program interpreter"),
        None => bail!("the agent is not a 64-bit ELF executable"),
    }
}

fn check_agent_crates(workspace: &Workspace) -> Result<()> {
    let tree = Run::new("cargo")
        .args(["tree", "--locked", "-p", "kata-agent", "-e", "normal", "--prefix", "none"])
        .cwd(workspace.root())
        .quietly()
        .output()?;
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let found: Vec<&str> =
        KEPT_OUT_OF_AGENT.iter().copied().filter(|name| crates.contains(name)).collect();
    if !found.is_empty() {
        bail!("the agent must not depend on {}", found.join(", "));
    }
    Ok(())
}

/// Whether an ELF executable asks for a dynamic loader (a program header `PT_INTERP`, elf(5)).
fn needs_interpreter(elf: &[u8]) -> Option<bool> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    if elf.get(..4)? != b"\x7fELF" || *elf.get(4)? != CLASS_64 {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    for index in 0..count {
        let at = usize::try_from(table).ok()?.checked_add(index * size)?;
        let kind = u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one program header of a kind.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn an_interpreter_is_noticed() {
        assert_eq!(needs_interpreter(&elf(3)), Some(true));
        assert_eq!(needs_interpreter(&elf(1)), Some(false));
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused() {
        assert!(check_agent(b"#!/bin/sh\n").is_err());
        assert!(check_agent(&elf(1)[..60]).is_err());
    }

    #[test]
    fn an_agent_beyond_the_limit_is_refused() {
        let mut large = elf(1);
        large.resize(AGENT_LIMIT as usize + 1, 0);
        assert!(check_agent(&large).is_err());
    }
}
