//! What went wrong, and the exit code that says so.

use std::{io, path::PathBuf};

use kata_config::{ArtefactError, ConfigError};
use kata_engine_api::{handover::FailureKind, monitor::MonitorError, words::chain};
use kata_hooks::{HookError, place::PlaceError};
use kata_spec::{SpecError, TreeError};
use kata_store::{StoreError, UserError};
use kata_sys::spawn::SpawnError;

use crate::{bundle::BundleError, id::IdError, signal::UnknownSignal};

/// Exit code of whatever has no better one.
const GENERAL: u8 = 1;
/// A command that may not be executed, as shells have it.
const NOT_EXECUTABLE: u8 = 126;
/// A command that is not there, as shells have it.
const NOT_FOUND: u8 = 127;

/// Every way in which a command can fail.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Options that do not go together, or that are refused by name.
    #[error("{0}")]
    Usage(String),
    /// A container id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A signal.
    #[error(transparent)]
    Signal(#[from] UnknownSignal),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The installation.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// A bundle and its spec.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Limits to change to.
    #[error(transparent)]
    Resources(#[from] SpecError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// There is no place to run hooks in.
    #[error(transparent)]
    HookPlace(#[from] PlaceError),
    /// A container image.
    #[error("image {reference}")]
    Image { reference: String, source: StoreError },
    /// The store of images.
    #[error(transparent)]
    Store(StoreError),
    /// A user of the container's own.
    #[error(transparent)]
    User(#[from] UserError),
    /// The id is taken.
    #[error("container with given ID already exists: {id} in {}", root.display())]
    Exists { id: String, root: PathBuf },
    /// No such container.
    #[error("container does not exist: {id} in {}", root.display())]
    Unknown { id: String, root: PathBuf },
    /// Something on the host, by the operation that was attempted.
    #[error("cannot {attempted}")]
    Host { attempted: String, source: io::Error },
    /// A program of ours could not be started.
    #[error("cannot start the {program}")]
    Start { program: &'static str, source: SpawnError },
    /// No monitor, or one that gave up before it was ready.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The root file system or a volume.
    #[error(transparent)]
    Trees(#[from] TreeError),
    /// The shim's own words.
    #[error("{message}")]
    Refused { kind: FailureKind, message: String },
    /// The shim is there, and says nothing.
    #[error("the shim of {id} does not answer; delete --force ends it")]
    Unresponsive { id: String },
    /// The shim ended instead of answering.
    #[error("the shim ended without an answer: {0}")]
    ShimLost(String),
    /// The shim answered before, and waits for its guest.
    #[error(
        "{call}: the guest does not answer: it hangs, or its VMM gets no processor time (kata.vmmPid in the container's \
         state); kill with KILL ends it"
    )]
    GuestSilent { call: &'static str },
    /// The connection to the shim broke, the time for an answer is over, or the answer was not understood.
    #[error("{call}: no answer of the shim")]
    Call { call: &'static str, source: ttrpc::Error },
    /// Somebody wanted the end before there was anything to end.
    #[error("interrupted by signal {0} before the program had started")]
    Interrupted(i32),
    /// Runtime state that this version can't read.
    #[error("{}: not understood", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
}

impl Failure {
    /// An error of the host, by what was attempted.
    pub fn host(attempted: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Host { attempted, source }
    }

    /// The same for system calls without a `std` wrapper.
    pub fn system(attempted: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let attempted = attempted.into();
        move |source| Self::Host { attempted, source: source.into() }
    }

    /// What the program exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { kind: FailureKind::CommandNotFound, .. } => NOT_FOUND,
            Self::Refused { kind: FailureKind::CommandNotExecutable, .. } => NOT_EXECUTABLE,
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(GENERAL),
            Self::Bundle(error) => error.exit_code().unwrap_or(GENERAL),
            _ => GENERAL,
        }
    }

    /// The error with its causes, on one line whatever they contain.
    pub fn line(&self) -> String {
        without_numbers(&one_line(&chain(self)))
    }
}

/// Lines joined to one.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The standard library adds a number to each error of the system; the words before it say the same.
fn without_numbers(line: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut rest = line;
    let mut kept = String::new();
    while let Some(at) = rest.find(NUMBER) {
        let tail = &rest[at + NUMBER.len()..];
        let digits = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        kept.push_str(&rest[..at]);
        rest = digits.strip_prefix(')').unwrap_or(tail);
    }
    kept + rest
}

/// What a ttrpc status means to a person: the shim's message says it all.
pub fn from_status(call: &'static str, error: ttrpc::Error) -> Failure {
    let ttrpc::Error::RpcStatus(status) = &error else {
        return Failure::Call { call, source: error };
    };
    let kind = match status.code() {
        ttrpc::Code::NOT_FOUND => FailureKind::NotFound,
        ttrpc::Code::ALREADY_EXISTS => FailureKind::AlreadyExists,
        ttrpc::Code::FAILED_PRECONDITION => FailureKind::FailedPrecondition,
        ttrpc::Code::INVALID_ARGUMENT => FailureKind::InvalidArgument,
        ttrpc::Code::INTERNAL | ttrpc::Code::UNKNOWN => kind_of_message(&status.message),
        _ => FailureKind::Internal,
    };
    Failure::Refused { kind, message: status.message.clone() }
}

/// Of a call that the shim answers when its guest has: it answered when it was looked for.
pub fn from_guest(call: &'static str, error: ttrpc::Error) -> Failure {
    match error {
        // The client's own word for a deadline.
        ttrpc::Error::Others(_) => Failure::GuestSilent { call },
        error => from_status(call, error),
    }
}

/// containerd's Task API has no code for a missing command; runc's phrases are what everybody goes by.
fn kind_of_message(message: &str) -> FailureKind {
    if message.contains("executable file not found in $PATH")
        || message.ends_with("no such file or directory")
    {
        FailureKind::CommandNotFound
    } else if message.ends_with("permission denied") {
        FailureKind::CommandNotExecutable
    } else {
        FailureKind::Internal
    }
}

#[cfg(test)]
mod tests {
    use kata_engine_api::handover::FailureKind;

    use super::{Failure, from_status};

    fn status(code: ttrpc::Code, message: &str) -> Failure {
        from_status("start", ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
    }

    #[test]
    fn missing_commands_have_the_codes_of_shells() {
        let exec = "exec: \"nope\": executable file not found in $PATH";
        assert_eq!(status(ttrpc::Code::INTERNAL, exec).exit_code(), 127);
        let denied = "exec: \"/etc/passwd\": permission denied";
        assert_eq!(status(ttrpc::Code::UNKNOWN, denied).exit_code(), 126);
        let refused =
            Failure::Refused { kind: FailureKind::CommandNotExecutable, message: String::new() };
        assert_eq!(refused.exit_code(), 126);
    }

    #[test]
    fn everything_else_is_1() {
        assert_eq!(
            status(ttrpc::Code::FAILED_PRECONDITION, "container not running").exit_code(),
            1
        );
        assert_eq!(Failure::Usage("no".into()).exit_code(), 1);
    }

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let failure = Failure::host("make /run/kata")(std::io::Error::other("it is\n  full"));
        assert_eq!(failure.line(), "cannot make /run/kata: it is full");
        let failure = Failure::host("open x")(std::io::Error::from_raw_os_error(2));
        assert_eq!(failure.line(), "cannot open x: No such file or directory");
    }
}
