//! Everything that `make` does: set-up, build, kernel, guest image, install, lint, tests.

mod args;
mod bench;
mod build;
mod cache;
mod chart;
mod deny;
mod image;
mod install;
mod kernel;
mod layout;
mod lint;
mod nested;
mod process;
mod progress;
mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::layout::Workspace;

fn main() -> ExitCode {
    match perform(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> anyhow::Result<()> {
    let workspace = Workspace::locate()?;
    match command {
        Command::Setup => {
            setup::prepare(setup::Purpose::Everything)?;
            test::roots::busybox()?;
            test::roots::debian()?;
            test::containerds::later()?;
            deny::prepare()
        }
        Command::Build(options) => build::everything(&workspace, options.profile),
        Command::Run => run::demonstrate(&workspace),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Lint => lint::run(&workspace).map(|skipped| {
            if let Some(reason) = skipped {
                println!("SKIP {reason}");
            }
        }),
        Command::Tidy => tidy::run(&workspace),
        Command::Kernel(options) => kernel::make(&workspace, options.profile).map(drop),
        Command::Image => image::build_all(&workspace),
        Command::Install(place) => install::install(&workspace, &place),
        Command::Uninstall(place) => install::uninstall(&place),
        Command::Chart(options) => chart::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
    }
}
