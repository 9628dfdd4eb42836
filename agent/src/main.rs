//! `kata-agent`: PID 1 of every guest.
//!
//! ```text
//! boot ─► dial the host, say hello ─► serve `kata.agent.v1.Agent` on that connection ─► it ends: sync, restart
//!          │
//!          └─ one thread: requests, streams and the reaper are tasks of it; containers are made by `helper`
//! ```
//!
//! The same binary, started as `helper`, is the nursery: a copy of it makes each container process (see [`helper`] and
//! [`nursery`]); started as `hold`, it holds a pod's pid namespace (see [`pod`]). Started as anything but process 1 of a
//! guest of ours it touches nothing.

mod boot;
mod cgroup;
mod clock;
mod container;
mod copies;
mod disk;
mod helper;
mod launch;
mod localhost;
mod memory;
mod network;
mod nursery;
mod order;
mod places;
mod pod;
mod process;
mod process_table;
mod reaper;
mod resolver;
mod sandbox;
mod service;
mod socket;
mod spec;
mod streams;
mod trees;

use std::process::ExitCode;

use tokio::runtime::Builder;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(helper::ARGUMENT) => return helper::main(),
        Some(pod::ARGUMENT) => return pod::main(),
        _ => {}
    }
    let nonce = match boot::identify() {
        Ok(nonce) => nonce,
        Err(error) => {
            eprintln!("kata-agent: {error}");
            return ExitCode::FAILURE;
        }
    };
    // From here on this is our guest: whatever happens, the end is a restart, which ends the VM.
    if let Err(error) = run(nonce) {
        complain(&*error);
    }
    boot::restart()
}

fn run(nonce: kata_protocol::hello::BootNonce) -> Result<(), Box<dyn std::error::Error>> {
    boot::prepare()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(service::serve(nonce));
    // A thread that the kernel holds holds up no end.
    runtime.shutdown_background();
    Ok(served?)
}

/// Says an error and its causes in one line of the console, which the host keeps.
fn complain(error: &dyn std::error::Error) {
    eprintln!("kata-agent: {}", order::with_causes(error));
}

/// Ends the process without a return through `main`: for the copy that a helper has made of itself.
#[expect(clippy::exit, reason = "the copy's stack is its original's")]
fn leave(code: ExitCode) -> ! {
    std::process::exit(i32::from(code != ExitCode::SUCCESS))
}
