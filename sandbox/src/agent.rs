//! The agent as the host calls it.

use std::{sync::Arc, time::Duration};

use kata_protocol::{agent, agent_ttrpc::AgentClient};
use thiserror::Error;
use tokio::net::UnixStream;
use ttrpc::{
    Code,
    asynchronous::{Client, transport::Socket},
    context,
};

use crate::step::{InjectedFault, Step, Steps};

/// An agent that is alive answers within milliseconds; under emulation, with eight guests on two processors, seconds.
/// This bounds a call to one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// How long an ending guest may take to kill what is left and write its caches back.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// The engines' own patience with statistics is about as long; they ask again.
const STATS_DEADLINE: Duration = Duration::from_secs(2);

/// Why a call failed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AgentError {
    /// The agent refused; its words are for a person.
    #[error("{message}")]
    Refused { code: Code, message: String },
    #[error("agent did not answer {call}")]
    Lost {
        call: &'static str,
        #[source]
        source: ttrpc::Error,
    },
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

impl AgentError {
    fn new(call: &'static str, source: ttrpc::Error) -> Self {
        match source {
            ttrpc::Error::RpcStatus(status) if status.code() != Code::DEADLINE_EXCEEDED => {
                Self::Refused { code: status.code(), message: presentable(&status.message) }
            }
            source => Self::Lost { call, source },
        }
    }
}

/// The connection to the agent of one sandbox; clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    steps: Arc<Steps>,
}

/// Calls that have a deadline and answer with nothing to wait for.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)+) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`AgentError`].
            pub async fn $name(&self, request: &agent::$request) -> Result<agent::$answer, AgentError> {
                self.steps.enter(Step::CallAgent)?;
                self.client
                    .$name(within(DEADLINE), request)
                    .await
                    .map_err(|e| AgentError::new(stringify!($name), e))
            }
        )+
    };
}

impl Agent {
    /// Speaks to the agent on the connection that it dialled.
    pub fn new(connection: UnixStream, steps: Arc<Steps>) -> Self {
        Self { client: AgentClient::new(Client::new(Socket::new(connection))), steps }
    }

    calls! {
        /// First of all: settings, network, and the first container.
        start_sandbox(StartSandboxRequest) -> StartSandboxResponse;
        /// Makes a container in a sandbox that runs.
        create_container(CreateContainerRequest) -> ProcessCreated;
        /// Has a container's init execute its program.
        start_container(ContainerRef) -> Empty;
        /// Makes the pod's pid namespace, if it is not there yet.
        hold_pids(Empty) -> Empty;
        /// Writes back to the host what the guest caches of its files.
        flush(Empty) -> Empty;
        /// Makes and starts an additional process.
        exec_process(ExecProcessRequest) -> ProcessCreated;
        /// Sends a signal.
        signal_process(SignalProcessRequest) -> Empty;
        /// Sets a terminal's size.
        resize_terminal(ResizeTerminalRequest) -> Empty;
        /// Processes of a container, by guest pid.
        list_processes(ContainerRef) -> ListProcessesResponse;
        /// Freezes a container.
        pause_container(ContainerRef) -> Empty;
        /// Thaws a container.
        resume_container(ContainerRef) -> Empty;
        /// Changes a container's limits.
        update_container(UpdateContainerRequest) -> Empty;
        /// Forgets an ended process.
        delete_process(ProcessRef) -> Empty;
        /// Follows the host's namespace.
        update_network(NetworkChange) -> Empty;
        /// Connects to an address of the guest's localhost.
        dial_localhost(DialLocalhostRequest) -> Empty;
        /// Has the guest listen where docker's containers ask for names.
        serve_resolver(ServeResolverRequest) -> Empty;
        /// Makes or changes a copy of a volume.
        write_volume(WriteVolumeRequest) -> Empty;
        /// Takes such a copy away.
        remove_volume(RemoveVolumeRequest) -> Empty;
        /// Moves the guest's wall clock, and tells it.
        adjust_clock(AdjustClockRequest) -> AdjustClockResponse;
        /// Lets the guest forget inodes that it merely caches.
        drop_caches(Empty) -> Empty;
    }

    /// The files of a container's cgroup that tell what it uses. Engines wait for the answer, so a guest that hangs has little
    /// time for it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn container_stats(
        &self,
        request: &agent::ContainerRef,
    ) -> Result<agent::ContainerStatsResponse, AgentError> {
        self.steps.enter(Step::CallAgent)?;
        self.client
            .container_stats(within(STATS_DEADLINE), request)
            .await
            .map_err(|e| AgentError::new("container_stats", e))
    }

    /// Waits, for as long as it takes, until a process has ended.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the agent's connection ends first.
    pub async fn wait_process(
        &self,
        request: &agent::ProcessRef,
    ) -> Result<agent::ProcessEnd, AgentError> {
        self.client
            .wait_process(context::Context::default(), request)
            .await
            .map_err(|e| AgentError::new("wait_process", e))
    }

    /// Waits, for as long as it takes, until the OOM killer has struck a container more often than the request knows, or the
    /// container has ended.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the agent's connection ends first.
    pub async fn wait_oom(
        &self,
        request: &agent::WaitOomRequest,
    ) -> Result<agent::OomCount, AgentError> {
        self.client
            .wait_oom(context::Context::default(), request)
            .await
            .map_err(|e| AgentError::new("wait_oom", e))
    }

    /// Kills what is left in the guest and writes its caches back to the host.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        self.client
            .shutdown(within(SHUTDOWN_DEADLINE), &agent::Empty::new())
            .await
            .map(drop)
            .map_err(|e| AgentError::new("shutdown", e))
    }
}

fn within(deadline: Duration) -> context::Context {
    context::with_duration(deadline)
}

/// A guest's words as they may stand in a log, a record or on a terminal: one line, no control characters, not endless.
pub fn presentable(text: &str) -> String {
    const LONGEST: usize = 1024;
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::presentable;

    #[test]
    fn a_guests_words_are_one_harmless_line() {
        assert_eq!(presentable("a\x1b[2J\nb"), "a [2J b");
        assert_eq!(presentable(&"x".repeat(4 << 20)).len(), 1024);
    }
}
