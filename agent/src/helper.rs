//! The single-threaded half of the agent: a copy of the re-executed nursery turns an [`Order`] into one waiting container
//! process.
//!
//! ```text
//! nursery: not dumpable ─► asked ─► clone (CLONE_PARENT) ─► asked ─► …
//! helper:                            └► order ─► join namespaces ─► clone (CLONE_PARENT, into the cgroup) ─► id maps ─► ends
//! process:                                                   └► settle ─► (Ready ─► wait ─►) filters ─► execve
//! ```
//!
//! The nursery is for speed alone (see [`crate::nursery`]): it is in no container, and reads no order.
//! Helper and process are children of the agent, never of each other. Whatever fails, on either side, is one
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
mod over_proc;
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

pub use container::{require_sysctls, set_all_sysctls, set_sysctl, sysctl_paths};
pub use devices::nodes_of;
use kata_sys::{
    fork::{self, Fork, Forked},
    inherit, scm,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::{
    nursery::HELPER,
    order::{self, Failure, Kind, Order, Report, Step},
};

/// Number of the nursery's socket; 0, 1 and 2 are later those of the process to be.
const SOCKET: i32 = 3;

/// Descriptors beyond the standard streams.
const FIRST_OTHER: u32 = 3;

/// The argument that makes the program a nursery of helpers.
pub const ARGUMENT: &str = "helper";

/// The nursery. What ends it is said on the console: the agent only sees that it is gone, when it asks again.
pub fn main() -> ExitCode {
    nurse().unwrap_or_else(|failure| {
        crate::complain(&failure);
        ExitCode::FAILURE
    })
}

/// Copies itself for each packet, until the agent is gone; returns in each copy too.
fn nurse() -> Result<ExitCode, Failure> {
    let socket = inherit::take(SOCKET).step(|| "take the nursery's socket")?;
    // Whoever shares a namespace with a helper must not read its memory or follow /proc/PID/exe. Copies inherit that. It stops
    // nobody who has CAP_SYS_PTRACE without a user namespace: so there is nothing in a copy that leads out of its container.
    fork::close_on_exec_from(FIRST_OTHER).step(|| "keep the nursery's files from others")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "hide the nursery's memory")?;
    rlimits::begin()?;
    loop {
        let packet = scm::receive(&socket).step(|| "hear what the nursery is asked")?;
        if packet.is_end() {
            return Ok(ExitCode::SUCCESS);
        }
        if packet.bytes != HELPER {
            return Err(Failure::invalid("the nursery was asked for what it doesn't know"));
        }
        let [stdin, stdout, stderr, control] = attached(packet.fds)?;
        let control = Control(control);
        match fork::fork(&Fork::default()) {
            Ok(Forked::Original(..)) => {}
            Ok(Forked::Copy) => {
                drop(socket);
                return Ok(help(&control, [stdin, stdout, stderr]));
            }
            Err(error) => control.fail(Failure::internal("make a helper", &error)),
        }
    }
}

/// Runs one order.
fn help(control: &Control, streams: [OwnedFd; 3]) -> ExitCode {
    match take_streams(streams).and_then(|()| run(control)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            control.fail(failure);
            ExitCode::FAILURE
        }
    }
}

fn take_streams([stdin, stdout, stderr]: [OwnedFd; 3]) -> Result<(), Failure> {
    let result = rustix::stdio::dup2_stdin(stdin)
        .and_then(|()| rustix::stdio::dup2_stdout(stdout))
        .and_then(|()| rustix::stdio::dup2_stderr(stderr));
    result.step(|| "take the standard streams")
}

fn run(control: &Control) -> Result<(), Failure> {
    let (order, files): (Order, Vec<OwnedFd>) = order::receive(&control.0)
        .step(|| "receive order")?
        .ok_or_else(|| Failure::invalid("the agent gave no order"))?;
    match order.kind {
        Kind::Init { container_id, root } => {
            let [cgroup, document] = attached(files)?;
            let spec = order::read_document(document.as_fd()).step(|| "read spec")?;
            drop(document);
            let spec = serde_json::from_slice(&spec)
                .map_err(|error| Failure::invalid(format!("spec: {error}")))?;
            let root = root.into();
            container::Creation { control, spec, root, container_id, terminal: order.terminal }
                .run(cgroup)
        }
        Kind::Exec { container_id, shared } => {
            let [cgroup, process, init, groups, filters] = attached(files)?;
            exec::Entry { control, container_id, terminal: order.terminal, shared, init }
                .run((cgroup, groups), (process, filters))
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
