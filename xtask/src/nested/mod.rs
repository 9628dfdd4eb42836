//! The nested host: a VM whose emulated processor can virtualise, so that guests in it run under KVM, by the kernel of
//! an ordinary host with all its devices, on a machine that has none of it. docs/design has the note.
//!
//! [`run`] boots it with a [`Job`], shows what the job's programs write, and gives what came of each. Whatever happens
//! to this process, the VM ends with it.

mod debian;
mod emulator;
mod host;
mod job;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::emulator::Emulator;
pub use self::host::ROOTS;
pub use self::job::{Calibration, JOB, Job, Program};
pub use self::vm::Outcome;
use crate::build::{self, replace_file};
use crate::layout::Workspace;
use crate::process::Run;
use crate::progress::Step;
use crate::setup::{self, Purpose};

const INIT_PACKAGE: &str = "kata-nested-host";

/// Hosts in a row that may die without having finished any program. When the emulated processor goes wrong, the host's
/// kernel panics. That says nothing of what is tested; a program that kills one host after the other does.
const MOST_HOSTS: usize = 3;

/// Boots the host, runs the job in it, and waits until it is off. What a host that died had not finished is done by
/// another one.
pub fn run(workspace: &Workspace, mut job: Job, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
    setup::prepare(Purpose::Nested)?;
    let host = host::make()?;
    let emulator = Emulator::make()?;
    let init = build_init(workspace)?;
    let directory = workspace.target().join("nested");
    let initrd = write_initrd(&init, &host.modules, &directory.join("initrd.img"))?;
    let (mut done, mut fruitless) = (Vec::new(), 0);
    loop {
        let disk = job.write_disk(&directory)?;
        let disks = [host.disk.as_path(), &disk];
        let machine =
            vm::Machine { emulator: &emulator, kernel: &host.kernel, initrd: &initrd, disks };
        let step = Step::begin("boot the nested host and run its job");
        let mut outcome =
            machine.run(job.deadline(), &directory, &mut on_line).with_context(|| {
                format!("the words of its kernel and more are in {}", directory.display())
            })?;
        step.end(format!("ready after {:.1} s", outcome.ready.as_secs_f64()));
        done.append(&mut outcome.programs);
        let Some(console) = &outcome.died else {
            outcome.programs = done;
            return Ok(outcome);
        };
        println!("    the nested host died; its console ends with:\n{console}");
        let before = job.programs.len();
        job.programs.retain(|program| done.iter().all(|ended| ended.name != program.name));
        fruitless = if job.programs.len() < before { 0 } else { fruitless + 1 };
        if let (MOST_HOSTS.., Some(program)) = (fruitless, job.programs.first()) {
            bail!("{MOST_HOSTS} nested hosts died while {} ran", program.name);
        }
    }
}

fn build_init(workspace: &Workspace) -> Result<PathBuf> {
    Run::new("cargo")
        .args(["build", "--quiet", "--locked", "--release", "-p", INIT_PACKAGE])
        .cwd(workspace.root())
        .attached()?;
    Ok(workspace.built().join(INIT_PACKAGE))
}

fn write_initrd(init: &Path, modules: &[PathBuf], to: &Path) -> Result<PathBuf> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut initrd = kata_image::Initrd::new(read(init)?);
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        initrd.add_module(&name.to_string_lossy(), read(module)?)?;
    }
    replace_file(to, 0o644, |out| Ok(initrd.write_to(std::io::BufWriter::new(out))?))?;
    Ok(to.to_owned())
}

/// Makes an ext4 image of a tree; it takes no more room than what is in it.
fn make_disk(tree: &Path, image: &Path, size: &str) -> Result<()> {
    build::remove_file(image)?;
    // A journal is for disks that outlive a crash.
    Run::new("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0",
            "-d",
        ])
        .args([tree, image])
        .args([size])
        .quietly()
        .output()?;
    Ok(())
}
