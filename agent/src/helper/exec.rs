//! A process more in a running container, and the last steps that it shares with init.

use std::{
    convert::Infallible,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::fork::{self, Fork, Forked};
use rustix::{
    process::setsid,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::{
    CONTROL, Control, become_process,
    container::set_oom_score,
    credentials::{self, Wanted},
    filter::Filters,
    program::{Program, WorkingDirectory},
    rlimits, scheduling,
    terminal::{self, Terminal},
};
use crate::{
    order::{self, Failure, FailureKind, Report, Step, TerminalSize},
    spec::{Hooks, Linux, Personality, Process, Spec},
};

/// What an exec is made from.
pub(super) struct Entry<'a> {
    pub(super) control: &'a Control,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) spec: OwnedFd,
    pub(super) process: OwnedFd,
    pub(super) init: OwnedFd,
    pub(super) filters: OwnedFd,
}

impl Entry<'_> {
    /// Joins everything that init is in, and clones the process there.
    pub(super) fn run(&self, cgroup: BorrowedFd<'_>) -> Result<(), Failure> {
        let spec: Spec = parse(&self.spec, "spec")?;
        let process: Process = parse(&self.process, "process")?;
        let filters = Filters::read(self.filters.as_fd())?;
        set_oom_score(&process)?;
        let nothing = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&nothing);
        credentials::own_streams(&process, linux)?;
        scheduling::enter_initial_cpus(&process)?;
        if has_user_namespace(linux) {
            // Root of a user namespace may not raise a limit.
            rlimits::apply(&process.rlimits)?;
        }
        let mut namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::TIME;
        if has_user_namespace(linux) {
            // Joining the one that a process is in already is an error, so only where there is another.
            namespaces |= ThreadNameSpaceType::USER;
        }
        move_into_thread_name_spaces(self.init.as_fd(), namespaces)
            .step(|| "join the container's namespaces")?;
        match fork::fork(&Fork { namespaces: None, cgroup: Some(cgroup) })
            .step(|| "clone the process")?
        {
            Forked::Copy => become_process(self.control, || self.settle(&spec, &process, &filters)),
            Forked::Original(pid, pidfd) => {
                scheduling::apply(pid, &process)?;
                self.control.forked(pid, &[pidfd.as_fd()])
            }
        }
    }

    fn settle(
        &self,
        spec: &Spec,
        process: &Process,
        filters: &Filters,
    ) -> Result<Infallible, Failure> {
        setsid().step(|| "lead a session")?;
        let terminal = match self.terminal {
            Some(size) => Some(terminal::acquire(process, size)?),
            None => None,
        };
        let nothing = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&nothing);
        scheduling::enter_final_cpus(process)?;
        launch(self.control, process, linux, Last { container: None, filters, terminal })
    }
}

fn has_user_namespace(linux: &Linux) -> bool {
    linux.namespace(crate::spec::NamespaceKind::User).is_some()
}

fn parse<T: serde::de::DeserializeOwned>(document: &OwnedFd, name: &str) -> Result<T, Failure> {
    let content = order::read_document(document.as_fd()).step(|| format!("read {name}"))?;
    serde_json::from_slice(&content).map_err(|error| Failure::invalid(format!("{name}: {error}")))
}

/// What else the last steps need.
pub(super) struct Last<'a> {
    /// Id of the container whose init it is, and its hooks.
    pub(super) container: Option<(&'a str, Option<&'a Hooks>)>,
    pub(super) filters: &'a Filters,
    pub(super) terminal: Option<Terminal>,
}

/// From a process that stands in its container to one that runs its program.
pub(super) fn launch(
    control: &Control,
    process: &Process,
    linux: &Linux,
    Last { container, filters, terminal }: Last<'_>,
) -> Result<Infallible, Failure> {
    if let Some((id, _)) = container {
        join_keyring(id)?;
    }
    if let Some(personality) = &linux.personality {
        set_personality(personality)?;
    }
    let wanted = Wanted::parse(process.capabilities.as_ref())?;
    if !has_user_namespace(linux) {
        rlimits::apply(&process.rlimits)?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "give up new privileges")?;
    }
    let working_directory = WorkingDirectory::enter_as_root(&process.cwd)?;
    wanted.enter(&process.user)?;
    working_directory.enter_as_user()?;
    let program = Program::find(process)?;
    let master: Vec<BorrowedFd<'_>> = terminal.iter().map(|it| it.master.as_fd()).collect();
    control.report(&Report::Ready, &master)?;
    drop(terminal);
    if !order::wait_for_start(control.socket()).step(|| "wait for the start")? {
        return Err(Failure::invalid("the agent gave the process up"));
    }
    if let Some((id, Some(hooks))) = container {
        run_hooks(hooks, id, &process.env)?;
    }
    fork::reset_signals().step(|| "reset signals")?;
    fork::close_on_exec_from(CONTROL as u32).step(|| "close descriptors")?;
    filters.load()?;
    wanted.settle()?;
    Err(program.execute())
}

/// Before the filters: they are about the program, and may leave a hook no way to run.
fn run_hooks(hooks: &Hooks, container_id: &str, env: &[String]) -> Result<(), Failure> {
    hooks.before_program(container_id, env).map_err(|error| {
        let causes =
            std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        let message = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        Failure { kind: FailureKind::Internal, message }
    })
}

fn set_personality(personality: &Personality) -> Result<(), Failure> {
    let domain = match personality.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        unknown => return Err(Failure::invalid(format!("unknown personality {unknown:?}"))),
    };
    fork::set_personality(domain).step(|| "set the personality")
}

/// Keys of the agent's session are out of reach; a kernel without keys has none to share.
fn join_keyring(container_id: &str) -> Result<(), Failure> {
    let name = CString::new(format!("_ses.{container_id}"))
        .map_err(|_| Failure::invalid("container id contains a NUL"))?;
    match fork::join_session_keyring(&name) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
        result => result.step(|| "join a session keyring"),
    }
}
