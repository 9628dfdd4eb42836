//! `kata-runtime`: the OCI command line, and the person's tool.
//!
//! ```text
//! args ─► commands/VERB ─┬─ create, exec: programs + handover (descriptors)
//!                        ├─ start, kill, …: shim_client (Task service)
//!                        └─ no shim: offline (the shim binary's one-shot commands)
//! ```
//!
//! It is short-lived, keeps nothing in memory that matters, and talks only to the shim of the container that it was
//! called for. Failures are told once, here: a line on stderr, one in `--log`, and the exit code.

mod args;
mod bundle;
mod commands;
mod create;
mod exec_process;
mod failure;
mod foreground;
mod handover;
mod id;
mod journal;
mod made_spec;
mod offline;
mod pid_file;
mod programs;
mod sandbox_dir;
mod shim_client;
mod signal;
mod terminal;
mod trees;
mod words;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Cli, commands::Context, journal::Journal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to stdout. Nobody may be reading either.
            error.print().ok();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let journal =
        match Journal::open(cli.global.log.as_deref(), cli.global.log_format, cli.global.debug) {
            Ok(journal) => journal,
            Err(failure) => {
                Journal::default().error(&failure.line());
                return ExitCode::from(failure.exit_code());
            }
        };
    let verb = cli.command.verb();
    let done = Context::new(cli.global, &journal).and_then(|context| context.run(cli.command));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            journal.error(&format!("{verb}: {}", failure.line()));
            ExitCode::from(failure.exit_code())
        }
    }
}
