//! From the kernel's hands to a guest that containers can be made in.
//!
//! ```text
//! identify: process 1? /proc; nonce?  ── no ─► refuse, touch nothing else
//! prepare:  modules ─► mounts in a new root ─► old root read-only ─► enter the new, read-only ─► cgroups ─► shares ─► loopback
//! ```

mod command_line;
mod modules;
mod mounts;

use std::{fs, io, path::Path};

use kata_protocol::hello::BootNonce;
use rustix::{
    mount::{MountFlags, mount},
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
    system::RebootCommand,
};

use crate::{cgroup, network};

/// The kernel command line as containers see it: one file for all, in a file system that nobody can write to.
pub const SCRUBBED_COMMAND_LINE: &str = "/cmdline";

/// Device nodes for containers that may not make their own.
pub const NODES: &str = "/run/kata/nodes";

/// Where a container's root is attached in its own mount namespace, before it becomes `/` there.
pub const CONTAINER_ROOT: &str = "/container";

/// Why the program does not run, or the guest not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Started by a person or a script.
    #[error("runs only as process 1 of a guest that Kata started (this is process {0})")]
    NotInit(i32),
    /// Process 1 of something else.
    #[error(
        "runs only in a guest that Kata started: no {} on the kernel command line",
        kata_protocol::NONCE_PARAMETER
    )]
    NoNonce,
    /// The host wrote something else than 32 bytes in hex.
    #[error("{} on the kernel command line is malformed", kata_protocol::NONCE_PARAMETER)]
    MalformedNonce,
    /// A step of the way.
    #[error("can't {step}")]
    Step {
        /// What was attempted.
        step: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Names the step that an error ended.
trait During<T> {
    fn during(self, step: impl Into<String>) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl Into<String>) -> Result<T, BootError> {
        self.map_err(|source| BootError::Step { step: step.into(), source: source.into() })
    }
}

/// Makes sure that this is process 1 of our own guest, before anything is touched.
pub fn identify() -> Result<BootNonce, BootError> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    if pid != 1 {
        return Err(BootError::NotInit(pid));
    }
    if !Path::new("/proc/cmdline").exists() {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        fs::create_dir_all("/proc").during("make /proc")?;
        mount("proc", "/proc", "proc", flags, None).during("mount /proc")?;
    }
    let line = fs::read_to_string("/proc/cmdline").during("read /proc/cmdline")?;
    command_line::nonce(&line)
}

/// Turns the kernel's bare world into one for containers.
pub fn prepare() -> Result<(), BootError> {
    // Keys of the host are in this memory, and its executable must not be reached through /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).during("become undumpable")?;
    modules::load()?;
    let line = fs::read_to_string("/proc/cmdline").during("read /proc/cmdline")?;
    mounts::enter_new_root(&command_line::scrub(&line))?;
    // The kernel's log begins with the command line.
    fs::write("/proc/sys/kernel/dmesg_restrict", "1").during("restrict the kernel log")?;
    fs::write("/proc/self/oom_score_adj", "-1000").during("keep the OOM killer off")?;
    // A host has memory for many containers, and promises each as much as it asks for; what counts is the limit of its cgroup.
    fs::write("/proc/sys/vm/overcommit_memory", "1").during("promise memory as a host does")?;
    raise_limits()?;
    cgroup::prepare_hierarchy().during("prepare the cgroup hierarchy")?;
    mounts::mount_shares()?;
    network::loopback_up().during("set the loopback link up")
}

/// Open files, at most, of the agent and of each process of a container whose spec says nothing else.
pub const OPEN_FILES: u64 = 524_288;

/// What a spec may ask for: as many as systemd lets it on a host, where engines take their limits from.
const MOST_OPEN_FILES: &str = "1073741816";

/// What containers have whose spec sets no limit: those of a service manager on a host, not the kernel's own, which go by
/// the size of the guest's memory. The guest is the container's alone, and its cgroup has the limits that count. (On open files the
/// nursery gives them a lower soft one: the agent itself holds some of each process.)
fn raise_limits() -> Result<(), BootError> {
    fs::write("/proc/sys/fs/nr_open", MOST_OPEN_FILES).during("raise the bound on open files")?;
    let files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, files).during("raise the limit on open files")?;
    let processes = Rlimit { current: None, maximum: None };
    setrlimit(Resource::Nproc, processes).during("raise the limit on processes")
}

/// Ends the guest: the VMM is told to take a restart for the end.
pub fn restart() -> ! {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::Restart) {
        eprintln!("kata-agent: can't restart: {error}");
    }
    // Process 1 that ends is a kernel panic, which ends the guest too.
    crate::leave(std::process::ExitCode::FAILURE)
}
