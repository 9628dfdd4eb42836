//! The pod's own pid namespace, for containers that share one.
//!
//! ```text
//! agent ── spawns ─► holder: process 1 of the new namespace; reaps what is orphaned there, and does nothing else
//!    └ keeps the namespace at a path that the protocol fixes
//! ```
//!
//! A holder, since whoever shared the agent's own namespace would see process 1 of the guest. Containers see the holder:
//! it has given up all mounts, user and capabilities, and nobody may look into it. Whoever may none the less, by
//! CAP_SYS_PTRACE, finds nothing there, and no way up to the agent's files.

use std::{fs::File, io, path::Path, process::ExitCode};

use kata_protocol::POD_PIDS;
use kata_sys::{
    signals::SignalFd,
    spawn::{Lifetime, Spawn},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Gid, Uid},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
    },
    process::{DumpableBehavior, WaitOptions, chdir, pivot_root, set_dumpable_behavior, wait},
    thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use tokio::sync::Mutex;

use crate::order::{Failure, Step};

/// The argument that makes the program a holder.
pub const ARGUMENT: &str = "hold";

/// What containers see as the program of process 1: what other runtimes have there.
const SHOWN_AS: &std::ffi::CStr = c"/pause";

/// An empty directory.
const NOWHERE: &str = "/container";

const NOBODY: u32 = 65_534;
const SIGCHLD: i32 = 17;

/// The pod's pid namespace: made when the first container wants it.
#[derive(Debug, Default)]
pub struct PodPids(Mutex<bool>);

impl PodPids {
    /// Makes the namespace, unless it is there.
    pub async fn hold(&self) -> Result<(), Failure> {
        let mut held = self.0.lock().await;
        if *held {
            return Ok(());
        }
        let mut spawn = Spawn::new(c"/proc/self/exe".into());
        spawn.arguments = vec![SHOWN_AS.into(), c"hold".into()];
        spawn.namespaces = UnshareFlags::NEWPID | UnshareFlags::NEWNS;
        // It ends with its namespace's last use, which is the guest's.
        spawn.lifetime = Lifetime::Own;
        let holder = spawn.start().step(|| "start the holder of the pod's pid namespace")?;
        let namespace = format!("/proc/{}/ns/pid", holder.pid.as_raw_nonzero());
        File::create(POD_PIDS).step(|| "make a place for the pod's pid namespace")?;
        mount_bind(Path::new(&namespace), POD_PIDS).step(|| "keep the pod's pid namespace")?;
        *held = true;
        Ok(())
    }
}

/// Runs the holder.
pub fn main() -> ExitCode {
    match hold() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("kata-agent hold: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold() -> io::Result<std::convert::Infallible> {
    let children = SignalFd::block([SIGCHLD])?;
    leave_all_mounts()?;
    set_thread_groups(&[])?;
    let (group, user) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&children, PollFlags::IN)], None))?;
        children.next()?;
    }
}

/// Its only mount is an empty one from here on.
fn leave_all_mounts() -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", NOWHERE, "tmpfs", flags, Some(c"mode=555,size=4k"))?;
    chdir(NOWHERE)?;
    // The old root ends up on top of the new one, where one detach takes it away.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}
