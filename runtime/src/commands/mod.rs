//! One file a verb.

mod check;
mod create;
mod delete;
mod document;
mod env;
mod events;
mod exec;
mod explain;
mod install;
mod kill;
mod list;
mod prune;
mod ps;
mod repair;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use kata_config::{Loaded, Prefix};
use kata_engine_api::{
    handover::FailureKind,
    record::{Cause, Ended, Status},
};

use crate::{
    args::{Command, Global, OnlyId},
    failure::Failure,
    id::ContainerId,
    journal::Journal,
    offline,
    sandbox_dir::{Root, SandboxDir},
    shim_client::{PATIENCE, ShimClient, block_on},
};

/// What runc and the shim say of a container that has ended, or that is not started.
const NOT_RUNNING: &str = "container not running";

/// What every command has.
pub struct Context<'a> {
    root: Root,
    config: PathBuf,
    prefix: Prefix,
    /// For shims that this command starts.
    shim_environment: Vec<String>,
    journal: &'a Journal,
    /// What only `spec` asks.
    rootless: bool,
}

impl Command {
    /// The word that was typed.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::State(_) => "state",
            Self::Kill(_) => "kill",
            Self::Delete(_) => "delete",
            Self::Exec(_) => "exec",
            Self::List(_) => "list",
            Self::Ps(_) => "ps",
            Self::Events(_) => "events",
            Self::Update(_) => "update",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Spec(_) => "spec",
            Self::Check(_) => "check",
            Self::Install(_) => "install",
            Self::Env(_) => "env",
            Self::Prune(_) => "prune",
            Self::Explain(_) => "explain",
            Self::Checkpoint(_) => "checkpoint",
            Self::Restore(_) => "restore",
            Self::Completion { .. } => "completion",
            Self::Document { .. } => "document",
            Self::Features => "features",
            Self::Version => "version",
            Self::Help { .. } => "help",
        }
    }
}

impl<'a> Context<'a> {
    /// Takes the options that hold for every command.
    pub fn new(global: Global, journal: &'a Journal) -> Result<Self, Failure> {
        if global.systemd_cgroup {
            journal.debug("control groups are made where systemd would make them, without it");
        }
        let mut shim_environment = Vec::new();
        // The shim starts with no environment and no working directory of the caller's.
        let config = std::path::absolute(&global.config)
            .map_err(Failure::host("find the configuration directory"))?;
        if config != Path::new(kata_config::DEFAULT_DIRECTORY) {
            let variable = kata_config::DIRECTORY_VARIABLE;
            shim_environment.push(format!("{variable}={}", config.display()));
        }
        if global.debug {
            shim_environment.push("KATA_LOG=debug".to_owned());
        }
        // Fault injection: the steps that change the world are the shim's.
        if let Ok(fault) = std::env::var("KATA_FAULT") {
            shim_environment.push(format!("KATA_FAULT={fault}"));
        }
        Ok(Self {
            root: Root::new(&global.root)?,
            config,
            prefix: Prefix::of_this_program()?,
            shim_environment,
            journal,
            rootless: global.rootless.as_deref() == Some("true"),
        })
    }

    /// Does what was asked; the code is what the program exits with.
    pub fn run(&self, command: Command) -> Result<u8, Failure> {
        match command {
            Command::Run(run) => return self.run_container(*run),
            Command::Exec(exec) => return self.exec(&exec),
            Command::Check(report) => return self.check(&report),
            Command::Create(create) => self.create(&create)?,
            Command::Start(OnlyId { id }) => self.start(&id)?,
            Command::State(OnlyId { id }) => self.state(&id)?,
            Command::Kill(kill) => self.kill(&kill)?,
            Command::Delete(delete) => self.delete(&delete)?,
            Command::List(list) => self.list(&list)?,
            Command::Ps(ps) => self.ps(&ps)?,
            Command::Events(events) => self.events(&events)?,
            Command::Update(update) => self.update(&update)?,
            Command::Pause(OnlyId { id }) => {
                self.with_shim(&id, NOT_RUNNING, async |shim| shim.pause().await)?
            }
            Command::Resume(OnlyId { id }) => {
                self.with_shim(&id, "container not paused", async |shim| shim.resume().await)?
            }
            Command::Spec(spec) => self.spec(&spec)?,
            Command::Install(install) => self.install(&install)?,
            Command::Env(report) => self.env(&report)?,
            Command::Prune(prune) => print(&prune::prune(&prune.store)?)?,
            Command::Explain(explain) => explain::print(&explain)?,
            Command::Checkpoint(_) | Command::Restore(_) => {
                return Err(Failure::Usage(
                    "not supported: the state of a VM can't be saved and brought back yet".into(),
                ));
            }
            Command::Completion { shell } => document::completion(shell)?,
            Command::Document { share } => document::write(&share)?,
            Command::Features => print_json(&kata_spec::features())?,
            Command::Version => print(&version())?,
            Command::Help { verb } => document::help(verb.as_deref())?,
        }
        Ok(0)
    }
}

impl Context<'_> {
    /// Calls the shim of a container; without one the container has ended, and is `refused` as its shim would.
    fn with_shim<T>(
        &self,
        id: &ContainerId,
        refused: &str,
        call: impl AsyncFnOnce(&ShimClient) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let dir = self.root.open(id)?;
        let called = block_on(async {
            match ShimClient::find(&dir, id, PATIENCE).await? {
                Some(shim) => call(&shim).await.map(Some),
                None => Ok(None),
            }
        });
        match called {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.ended(&dir, id, refused)),
            // It went while it was asked, for its container has ended.
            Err(Failure::Call { .. }) if has_stopped(&dir) => Err(self.ended(&dir, id, refused)),
            Err(failure) => Err(failure),
        }
    }

    /// The failure of a call that comes after the end: in the shim's words, and with the end if it was none in order.
    fn ended(&self, dir: &SandboxDir, id: &ContainerId, refused: &str) -> Failure {
        let ended = offline::state(&self.prefix, dir).ok().and_then(|record| record.ended);
        let message = match ended {
            None => format!("{NOT_RUNNING}: {id}"),
            Some(Ended { cause: cause @ Cause::ShimLost, .. }) => {
                format!("{refused}: {id} ({})", cause.describe())
            }
            Some(_) => refused.to_owned(),
        };
        Failure::Refused { kind: FailureKind::FailedPrecondition, message }
    }

    fn loaded(&self) -> Result<Loaded, Failure> {
        Ok(Loaded::read(&self.config)?)
    }
}

/// The shim has recorded the end.
fn has_stopped(dir: &SandboxDir) -> bool {
    dir.record().is_ok_and(|record| record.is_some_and(|record| record.status == Status::Stopped))
}

fn version() -> String {
    format!("kata-runtime version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), kata_spec::VERSION)
}

/// Prints to stdout. A reader that is gone has seen enough.
fn print(text: &str) -> Result<(), Failure> {
    print_on(text).map(drop)
}

/// The same for whoever would print more: breaks when the reader is gone.
fn print_on(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::host("print the answer")(error)),
    }
}

/// The same on one line, where scripts read lines.
fn print_json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::host("print the answer")(error.into()))?;
    print(&format!("{text}\n"))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::host("print the answer")(error.into()))?;
    print(&format!("{text}\n"))
}
