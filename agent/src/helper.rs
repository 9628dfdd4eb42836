//! The re-executed, single-threaded half of the agent: it turns an [`Order`] into one waiting container process.
//!
//! ```text
//! helper: not dumpable ─► order ─► join namespaces ─► clone (CLONE_PARENT, into the cgroup) ─► id maps ─► ends
//! process:                                              └► settle ─► Ready ─► wait ─► filters ─► execve
//! ```
//!
//! The process is a child of the agent, never of the helper. Whatever fails, on either side, is one
//! [`Failure`] on the control socket. Nothing here trusts the container's tree: its paths are resolved below its
//! root ([`paths`]) until the root is all there is.

mod container;
mod copy_up;
mod credentials;
mod devices;
mod exec;
mod filter;
mod mounts;
mod namespaces;
mod options;
mod paths;
mod program;
mod rlimits;
mod rootfs;
mod scheduling;
mod seccomp;
mod sources;
mod terminal;

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::ExitCode,
};

pub use container::{set_sysctl, sysctl_path};
use kata_sys::{fork, inherit};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::order::{self, Failure, Kind, Order, Report, Step};

/// Number of the control socket's descriptor; 0, 1 and 2 are those of the process to be.
const CONTROL: i32 = 3;

/// The argument that makes the program a helper.
pub const ARGUMENT: &str = "helper";

/// Runs one order.
pub fn main() -> ExitCode {
    let Ok(socket) = inherit::take(CONTROL) else { return ExitCode::FAILURE };
    let control = Control(socket);
    match run(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            control.fail(failure);
            ExitCode::FAILURE
        }
    }
}

fn run(control: &Control) -> Result<(), Failure> {
    fork::close_on_exec_from(CONTROL as u32).step(|| "close descriptors")?;
    // Whoever shares a namespace with the helper must not read its memory or follow /proc/PID/exe.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "become undumpable")?;
    let (order, files): (Order, Vec<OwnedFd>) = order::receive(&control.0)
        .step(|| "receive order")?
        .ok_or_else(|| Failure::invalid("the agent gave no order"))?;
    match order.kind {
        Kind::Init { container_id, root } => {
            let [cgroup, spec] = attached(files)?;
            let spec = order::read_document(spec.as_fd()).step(|| "read spec")?;
            let spec = serde_json::from_slice(&spec)
                .map_err(|error| Failure::invalid(format!("spec: {error}")))?;
            let root = root.into();
            container::Creation { control, spec, root, container_id, terminal: order.terminal }
                .run(cgroup.as_fd())
        }
        Kind::Exec => {
            let [cgroup, spec, process, init, filters] = attached(files)?;
            exec::Entry { control, terminal: order.terminal, spec, process, init, filters }
                .run(cgroup.as_fd())
        }
    }
}

fn attached<const N: usize>(files: Vec<OwnedFd>) -> Result<[OwnedFd; N], Failure> {
    <[OwnedFd; N]>::try_from(files).map_err(|_| Failure::invalid("order with the wrong files"))
}

/// The way back to the agent.
struct Control(OwnedFd);

impl Control {
    fn report(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        order::send(&self.0, report, fds).step(|| "report to the agent")
    }

    /// Says why there is no process; when that fails too, the end of the connection says it.
    fn fail(&self, failure: Failure) {
        self.report(&Report::Failed(failure), &[]).ok();
    }
}

/// The side of a fork that is to become the container's process.
fn become_process(control: &Control, settle: impl FnOnce() -> Result<Infallible, Failure>) -> ! {
    let Err(failure) = settle();
    control.fail(failure);
    crate::leave(ExitCode::FAILURE)
}
