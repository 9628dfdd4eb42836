//! `containerd-shim-kata-v2`: the one privileged process of a sandbox.
//!
//! ```text
//! serve       serve one sandbox on inherited sockets (started by kata-runtime)
//! vmm-jail    enter the VMM's jail and become the VMM (started by serve)
//! offline     state, delete, repair: what can be said and done about a sandbox whose shim is gone
//! verify      whether the installed VMM has what the driver needs
//!
//! -namespace NS -address SOCKET -id ID start|delete     what an engine runs (see [`engine`])
//! ```

mod container;
mod copies;
mod engine;
mod failure;
mod handover;
mod memory;
mod monitor;
mod mounts;
mod offline;
mod process;
mod record;
mod serve;
mod service;
mod sizing;
mod statistics;
mod task;
mod vmm;
mod volumes;

use std::process::ExitCode;

use anyhow::{Context, bail};
use engine::flags::{Flags, Verb};

const USAGE: &str = "usage: containerd-shim-kata-v2 serve
       containerd-shim-kata-v2 vmm-jail
       containerd-shim-kata-v2 offline state|delete|repair --sandbox-dir DIR
       containerd-shim-kata-v2 verify
       containerd-shim-kata-v2 -namespace NS -address SOCKET -id ID start|delete
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
        ["offline", "repair", "--sandbox-dir", dir] => offline::repair(dir.as_ref()),
        ["verify"] => vmm::verify(),
        ["serve-engine", namespace, _id] => serve::serve_engine(namespace),
        [first, ..] if first.starts_with('-') => {
            let flags = Flags::parse(&arguments).with_context(|| USAGE.to_owned())?;
            match flags.verb {
                Verb::Start => engine::start::start(&flags),
                Verb::Delete => engine::delete::delete(&flags),
                Verb::Info => engine::info::info(),
                Verb::Version => {
                    println!("containerd-shim-kata-v2 {}", env!("CARGO_PKG_VERSION"));
                    Ok(())
                }
                Verb::None => bail!("nothing to do\n{USAGE}"),
            }
        }
        _ => bail!("unknown arguments {words:?}\n{USAGE}"),
    }
}
