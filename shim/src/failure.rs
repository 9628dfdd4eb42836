//! One error for everything that a request can fail of, mapped once to each of the two ways out.

use kata_engine_api::handover::{Failure, FailureKind};
use kata_sandbox::{agent::AgentError, lifecycle::SandboxError};
use kata_sys::causes::chain;
use ttrpc::Code;

/// Why a request failed: its kind for programs, its message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What sort of failure.
    pub kind: FailureKind,
    /// The whole chain, one line.
    pub message: String,
}

impl Refusal {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(FailureKind::NotFound, what)
    }

    pub fn precondition(why: impl Into<String>) -> Self {
        Self::new(FailureKind::FailedPrecondition, why)
    }

    /// As containerd's own shim words what its runtime says of a program: engines go by the beginning.
    pub fn of_program(self, attempted: &str) -> Self {
        match self.kind {
            FailureKind::CommandNotFound | FailureKind::CommandNotExecutable => {
                let message = format!(
                    "OCI runtime {attempted} failed: {attempted} failed: unable to start container process: {}",
                    self.message
                );
                Self { message, ..self }
            }
            _ => self,
        }
    }

    /// Of an error whose chain tells it all.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(FailureKind::Internal, chain(error))
    }
}

impl From<AgentError> for Refusal {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Refused { code, message } => {
                let kind = match code {
                    // Of a program that is to run; of anything else the shim knows before it asks.
                    Code::NOT_FOUND => FailureKind::CommandNotFound,
                    Code::PERMISSION_DENIED => FailureKind::CommandNotExecutable,
                    Code::FAILED_PRECONDITION => FailureKind::FailedPrecondition,
                    Code::ALREADY_EXISTS => FailureKind::AlreadyExists,
                    Code::INVALID_ARGUMENT => FailureKind::InvalidArgument,
                    _ => FailureKind::Internal,
                };
                Self::new(kind, message)
            }
            other => Self::internal(&other),
        }
    }
}

impl From<SandboxError> for Refusal {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Agent(agent) => agent.into(),
            other => Self::internal(&other),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { kind: refusal.kind, message: refusal.message }
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            FailureKind::NotFound => Code::NOT_FOUND,
            FailureKind::AlreadyExists => Code::ALREADY_EXISTS,
            FailureKind::FailedPrecondition => Code::FAILED_PRECONDITION,
            FailureKind::InvalidArgument => Code::INVALID_ARGUMENT,
            FailureKind::Unimplemented => Code::UNIMPLEMENTED,
            // A program is no container: whoever hears NOT_FOUND takes the task for lost. Engines go by the words.
            FailureKind::CommandNotFound
            | FailureKind::CommandNotExecutable
            | FailureKind::Internal => Code::UNKNOWN,
        };
        Self::RpcStatus(ttrpc::get_status(code, refusal.message))
    }
}

#[cfg(test)]
mod tests {
    use kata_engine_api::handover::FailureKind;

    use super::Refusal;

    #[test]
    fn only_what_is_said_of_a_program_is_worded_as_a_runtimes() {
        let missing = Refusal::new(FailureKind::CommandNotFound, "exec: \"x\": no such file");
        let message = missing.of_program("exec").message;
        assert!(message.starts_with("OCI runtime exec failed: exec failed: "), "{message}");
        assert!(message.ends_with("exec: \"x\": no such file"), "{message}");
        assert_eq!(Refusal::precondition("paused").of_program("exec").message, "paused");
    }
}
