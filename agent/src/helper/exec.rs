//! A process more in a running container, and the last steps that it shares with init.

use std::{
    convert::Infallible,
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use kata_sys::fork::{self, Finder, Fork, Forked, Keyring};
use rustix::{
    process::setsid,
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::{
    Control, become_process,
    container::{become_root_of_namespace, set_oom_score},
    credentials::{self, Wanted},
    filter::Filters,
    namespaces,
    program::{Program, WorkingDirectory},
    rlimits, scheduling,
    terminal::{self, Terminal},
};
use crate::{
    order::{self, Failure, FailureKind, Report, Step, TerminalSize},
    spec::{Hooks, Personality, Process, Shared},
};

/// What an exec is made from.
pub(super) struct Entry<'a> {
    pub(super) control: &'a Control,
    pub(super) container_id: String,
    pub(super) terminal: Option<TerminalSize>,
    pub(super) shared: Shared,
    pub(super) init: OwnedFd,
}

impl Entry<'_> {
    /// Joins everything that init is in, and clones the process there.
    pub(super) fn run(
        &self,
        (cgroup, groups): (OwnedFd, OwnedFd),
        (process, filters): (OwnedFd, OwnedFd),
    ) -> Result<(), Failure> {
        let (process, filters) = (parse(process)?, read_filters(filters)?);
        set_oom_score(&process)?;
        credentials::own_streams(&process, &self.shared)?;
        scheduling::enter_initial_cpus(&process)?;
        if self.shared.user_namespace {
            rlimits::make_room(&process.rlimits)?;
        }
        let mut namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::TIME;
        if self.shared.user_namespace {
            // Joining the one that a process is in already is an error, so only where there is another.
            namespaces |= ThreadNameSpaceType::USER;
        }
        move_into_thread_name_spaces(self.init.as_fd(), namespaces)
            .step(|| "join the container's namespaces")?;
        match fork::fork(&Fork { namespaces: None, cgroup: Some(cgroup.as_fd()) })
            .step(|| "clone the process")?
        {
            Forked::Copy => {
                drop(cgroup);
                become_process(self.control, || self.settle(&process, &filters, groups))
            }
            Forked::Original(pid, pidfd) => {
                scheduling::apply(pid, &process)?;
                self.control.forked((pid, self.waits(&process)), &[pidfd.as_fd()])
            }
        }
    }

    /// Whether something is to be done about the process from outside before its program runs: the agent sets the modes of
    /// its terminal, the helper its schedule. All others go ahead, which saves the guest two changes of context.
    fn waits(&self, process: &Process) -> bool {
        self.terminal.is_some() || scheduling::is_asked_for(process)
    }

    fn settle(
        &self,
        process: &Process,
        filters: &Filters,
        groups: OwnedFd,
    ) -> Result<Infallible, Failure> {
        // It is open to others of the namespace, not to its root, who made it.
        join_keyring(&self.container_id)?;
        if self.shared.user_namespace {
            become_root_of_namespace()?;
        }
        setsid().step(|| "lead a session")?;
        namespaces::join_groups(groups)?;
        let terminal = match self.terminal {
            Some(size) => Some(terminal::acquire(process, size)?),
            None => None,
        };
        scheduling::enter_final_cpus(process)?;
        let waits = self.waits(process);
        let last = Last { container: None, filters, terminal, waits };
        launch(self.control, process, &self.shared, last)
    }
}

/// Like the filters' it is closed before there is a process that could inherit it.
fn parse(document: OwnedFd) -> Result<Process, Failure> {
    let content = order::read_document(document.as_fd()).step(|| "read process")?;
    serde_json::from_slice(&content).map_err(|error| Failure::invalid(format!("process: {error}")))
}

fn read_filters(document: OwnedFd) -> Result<Filters, Failure> {
    Filters::read(document.as_fd())
}

/// What else the last steps need.
pub(super) struct Last<'a> {
    /// Id of the container whose init it is, and its hooks.
    pub(super) container: Option<(&'a str, Option<&'a Hooks>)>,
    pub(super) filters: &'a Filters,
    pub(super) terminal: Option<Terminal>,
    /// The agent says when the program may run.
    pub(super) waits: bool,
}

/// From a process that stands in its container to one that runs its program.
pub(super) fn launch(
    control: &Control,
    process: &Process,
    shared: &Shared,
    Last { container, filters, terminal, waits }: Last<'_>,
) -> Result<Infallible, Failure> {
    if let Some((id, _)) = container {
        let finder = if shared.user_namespace { Finder::Other } else { Finder::User };
        // A process that is added joins it before it is this one's user.
        join_keyring(id)?
            .map_or(Ok(()), |keyring| keyring.let_find(finder))
            .step(|| "let processes find the session keyring")?;
    }
    if let Some(personality) = &shared.personality {
        set_personality(personality)?;
    }
    let wanted = Wanted::parse(process.capabilities.as_ref())?;
    rlimits::apply(&process.rlimits)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "give up new privileges")?;
    }
    let working_directory = WorkingDirectory::enter_as_root(&process.cwd)?;
    wanted.enter(&process.user)?;
    working_directory.enter_as_user()?;
    let program = Program::find(process)?;
    if waits {
        wait(control, terminal)?;
    }
    if let Some((id, Some(hooks))) = container {
        run_hooks(hooks, id, &program.variables(), filters)?;
    }
    fork::reset_signals().step(|| "reset signals")?;
    become_program(control, || {
        // With no_new_privs a filter needs no capability, and comes last; without, it has to allow capset, as with runc.
        let settled = if process.no_new_privileges {
            wanted.settle().and_then(|()| filters.load())
        } else {
            filters.load().and_then(|()| wanted.settle())
        };
        match settled {
            Ok(()) => program.execute(),
            Err(failure) => failure,
        }
    })
}

/// The very last steps, which return only why there is no program, with nothing open but the standard streams and the way
/// back: the name of a program, or of its interpreter, may lead through `/proc/self/fd`.
fn become_program(control: &Control, last: impl FnOnce() -> Failure) -> ! {
    fork::go_on_with_only(control.socket(), |alone| {
        match alone {
            Ok(socket) => Control(socket).fail(last()),
            Err(error) => control.fail(Failure::internal("close descriptors", &error)),
        }
        1
    })
}

/// Until the agent has the terminal, and says that the program may run.
fn wait(control: &Control, terminal: Option<Terminal>) -> Result<(), Failure> {
    let master: Vec<BorrowedFd<'_>> = terminal.iter().map(|it| it.master.as_fd()).collect();
    control.report(&Report::Ready, &master)?;
    drop(terminal);
    if order::wait_for_start(control.socket()).step(|| "wait for the start")? {
        Ok(())
    } else {
        Err(Failure::invalid("the agent gave the process up"))
    }
}

/// Programs of the container's root, so each runs under the container's filters; this process is not yet under them, for
/// they may leave it no way to start and to watch a hook.
fn run_hooks(
    hooks: &Hooks,
    container_id: &str,
    env: &[String],
    filters: &Filters,
) -> Result<(), Failure> {
    hooks.before_program(container_id, env, &filters.in_order()).map_err(|error| Failure {
        kind: FailureKind::Internal,
        message: order::with_causes(&error),
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

/// Keys of the agent's session are out of reach, those of the container's are shared by its processes; a kernel without keys
/// has none to share.
fn join_keyring(container_id: &str) -> Result<Option<Keyring>, Failure> {
    let name = CString::new(format!("_ses.{container_id}"))
        .map_err(|_| Failure::invalid("container id contains a NUL"))?;
    match fork::join_session_keyring(&name) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(None),
        result => result.map(Some).step(|| "join a session keyring"),
    }
}
