//! `containerd-shim-kata-v2`: the one privileged process of a sandbox.
//!
//! ```text
//! serve       serve one sandbox on inherited sockets (started by kata-runtime)
//! vmm-jail    enter the VMM's jail and become the VMM (started by serve)
//! offline     state, delete: what can be said and done about a sandbox whose shim is gone
//! verify      whether the installed VMM has what the driver needs
//! ```

mod container;
mod failure;
mod handover;
mod monitor;
mod mounts;
mod offline;
mod process;
mod record;
mod serve;
mod service;
mod sizing;
mod task;
mod vmm;

use std::process::ExitCode;

use anyhow::bail;

const USAGE: &str = "usage: containerd-shim-kata-v2 serve
       containerd-shim-kata-v2 vmm-jail
       containerd-shim-kata-v2 offline state|delete --sandbox-dir DIR
       containerd-shim-kata-v2 verify
       containerd-shim-kata-v2 --version";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-kata-v2: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve"] => serve::serve(),
        ["vmm-jail"] => vmm::enter_jail(),
        ["offline", "state", "--sandbox-dir", dir] => offline::state(dir.as_ref()),
        ["offline", "delete", "--sandbox-dir", dir] => offline::delete(dir.as_ref()),
        ["verify"] => vmm::verify(),
        ["--version" | "-v"] => {
            println!("containerd-shim-kata-v2 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => bail!("unknown arguments {words:?}\n{USAGE}"),
    }
}
