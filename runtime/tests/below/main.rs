//! The command line with made-up programs below it: what it asks of a shim and a monitor, and that it leaves nothing.
//!
//! This program is copied into a prefix as its own shim and monitor, beside the real `kata-runtime`; by its name it knows
//! which it is. Mount trees can only be taken by root, so anybody else sees a SKIP.
#![allow(clippy::unwrap_used, clippy::exit, clippy::let_underscore_must_use)]

mod claims;
mod monitor;
mod shim;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let program = env::current_exe().unwrap();
    match program.file_name().and_then(|name| name.to_str()) {
        Some("containerd-shim-kata-v2") => shim::main(),
        Some("kata-monitor") => monitor::main(),
        _ if !rustix::process::geteuid().is_root() => {
            println!("SKIP taking mount trees needs root");
            ExitCode::SUCCESS
        }
        _ => claims::all(),
    }
}
