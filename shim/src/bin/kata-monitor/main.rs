//! `kata-monitor`: the process on the host that stands for one container, or for one process run in it beside.
//!
//! Engines want a pid of their own kind: a child whose wait status is the container's, that holds its stdio, sits in its
//! network namespace and control group, takes its signals and dies when it dies. `kata-runtime` spawns this program for
//! it, before the shim hears of the container:
//!
//! ```text
//! kata-monitor --container ID [--exec EXECID] [--terminal] [--console-socket-fd N]
//!              [--new-network | --network-fd N] [--tree N PLACE]...
//! ```
//!
//! | fd | |
//! |---|---|
//! | 0, 1, 2 | the container's stdio, as the engine gave it |
//! | 3 | control socket (SEQPACKET), [`kata_engine_api::control`] |
//! | 4 | the sandbox directory |
//! | 5 | readiness: `ok` and a newline, or `error: ` and one line |
//!
//! Whatever else was inherited is closed. The exit code is the container's; 1 means that it never became ready, and 137
//! with `end.json` that its shim was lost. It writes nothing of its own to fds 0, 1, 2.

mod args;
mod console;
mod crew;
mod flow;
mod localhost;
mod note;
mod relay;
mod resolver;
mod session;
mod view;

use std::{
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    sync::Arc,
};

use args::{Args, ArgsError, Network};
use kata_sys::{causes::chain, inherit, network, signals::SignalFd};
use rustix::{io::Errno, process::setsid};

const CONTROL: i32 = 3;
const DIRECTORY: i32 = 4;
const READY: i32 = 5;

/// Why the monitor can't stand for anything.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("cannot take {what} (descriptor {number})")]
    Inherit { what: &'static str, number: i32, source: io::Error },
    #[error("cannot close inherited descriptors")]
    Close(#[source] io::Error),
    #[error("cannot detach from the caller")]
    Detach(#[source] io::Error),
    #[error("cannot take signals")]
    Signals(#[source] io::Error),
    #[error("cannot enter the network namespace")]
    Network(#[source] io::Error),
    #[error("cannot enter the container's root")]
    View(#[source] io::Error),
    #[error("cannot make a terminal and send it to the console socket")]
    Console(#[source] io::Error),
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    #[error("cannot prepare to wait for events")]
    Events(#[source] io::Error),
}

fn main() -> ExitCode {
    let ready = inherit::take(READY);
    let session = set_up();
    let answer = match &session {
        Ok(_) => "ok\n".to_owned(),
        Err(error) => format!("error: {}\n", chain(error)),
    };
    // Whoever started this process has died if it can't be told; the shim decides what becomes of the container.
    ready.and_then(|ready| std::fs::File::from(ready).write_all(answer.as_bytes())).ok();
    match session {
        Ok(session) => ExitCode::from(session.run()),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Everything that can fail, before the caller is told `ok`.
fn set_up() -> Result<session::Session, SetupError> {
    let args = Args::parse(std::env::args_os().skip(1))?;
    let control = take("the control socket", CONTROL)?;
    let directory = take("the sandbox directory", DIRECTORY)?;
    let console_socket =
        args.console_socket.map(|fd| take("the console socket", fd)).transpose()?;
    let namespace = match args.network {
        Network::Join(fd) => Some(take("the network namespace", fd)?),
        Network::Inherited | Network::New => None,
    };
    let view = take_view(&args)?;
    inherit::close_rest().map_err(SetupError::Close)?;
    let signals = SignalFd::block(session::forwarded()).map_err(SetupError::Signals)?;
    detach(&args).map_err(SetupError::Detach)?;
    match (args.network, &namespace) {
        (Network::New, _) => network::enter_new().map_err(SetupError::Network)?,
        (_, Some(namespace)) => network::enter(namespace.as_fd()).map_err(SetupError::Network)?,
        (_, None) => {}
    }
    if let Some(socket) = &console_socket {
        console::open(socket.as_fd()).map_err(SetupError::Console)?;
    }
    if let Some(view) = view {
        view.enter().map_err(SetupError::View)?;
    }
    rustix::io::ioctl_fionbio(&control, true).map_err(|error| SetupError::Events(error.into()))?;
    Ok(session::Session {
        control,
        directory: args.exec.is_none().then_some(directory),
        signals,
        terminal: args.terminal || console_socket.is_some(),
        crew: crew::Crew::new(crew_for(&args)).map_err(SetupError::Threads)?,
        bell: Arc::new(flow::Bell::new().map_err(SetupError::Events)?),
        last_input: Arc::new(flow::Bell::new().map_err(SetupError::Events)?),
    })
}

/// A thread for each standard stream; that of a container may be told to serve the localhost and the resolver as well.
fn crew_for(args: &Args) -> usize {
    match args.exec {
        Some(_) => 3,
        None => 5,
    }
}

fn take(what: &'static str, number: i32) -> Result<OwnedFd, SetupError> {
    inherit::take(number).map_err(|source| SetupError::Inherit { what, number, source })
}

fn take_view(args: &Args) -> Result<Option<view::View>, SetupError> {
    let Some(((root, _), volumes)) = args.trees.split_first() else { return Ok(None) };
    let root = take("the container's root", *root)?;
    let volumes = volumes.iter().map(|(fd, place)| Ok((take("a volume", *fd)?, place.clone())));
    Ok(Some(view::View { root, volumes: volumes.collect::<Result<_, SetupError>>()? }))
}

/// Lets go of whoever started this process: its death, its working directory, its session.
fn detach(args: &Args) -> io::Result<()> {
    // conmon sets it for the process that creates a container.
    rustix::process::set_parent_process_death_signal(None)?;
    std::env::set_current_dir("/")?;
    // On the caller's own terminal only the foreground group may read, and only it hears of a resize.
    let on_callers_terminal = args.terminal && args.console_socket.is_none();
    if on_callers_terminal {
        return Ok(());
    }
    match setsid() {
        // It leads a group, and so a session, already. Not asked before: in a pid namespace that was entered from outside,
        // the session's leader has no number.
        Ok(_) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
