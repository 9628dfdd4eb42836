//! The agent as the host calls it.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use kata_protocol::{agent, agent_ttrpc::AgentClient};
use thiserror::Error;
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    time::timeout,
};
use ttrpc::{
    Code,
    asynchronous::{Client, transport::Socket},
    context,
};

use crate::{
    answers::looked_at,
    loss::Loss,
    step::{InjectedFault, Step, Steps},
};

/// An agent that is alive answers within milliseconds; under emulation, with eight guests on two processors, seconds.
/// This bounds a call to one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The same for what somebody waits for who wants to know soon that it hangs.
const ASKED_FOR: Duration = Duration::from_secs(30);

/// How long an ending guest may take to kill what is left and write its caches back.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// The engines' own patience with statistics is about as long; they ask again.
const STATS_DEADLINE: Duration = Duration::from_secs(2);

/// Whoever holds the agent's connection open ends first, and is heard of a moment later; on a host that is out of memory,
/// seconds.
const AFTERMATH: Duration = Duration::from_secs(5);

/// What a sandbox that is lost may still have said comes at once.
const STUCK: Duration = Duration::from_secs(1);

/// How long a call waits for a guest that is known to be silent. More calls would only pile up on the connection, of which one
/// that is cut off while it is written takes all others along.
const HEARING: Duration = Duration::from_secs(5);

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
    /// Nothing is known to have ended, and nothing is heard.
    #[error(
        "the guest did not answer {call} within {} s: it hangs, or its VMM gets no processor time (kata.vmmPid in the \
         container's state); killing the container with KILL ends it",
        limit.as_secs()
    )]
    Silent { call: &'static str, limit: Duration },
    #[error("agent did not answer {call}: {}", loss.describe())]
    SandboxLost { call: &'static str, loss: Loss },
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
    loss: watch::Receiver<Option<Loss>>,
    silence: Arc<Silence>,
}

/// What is known of a guest that does not answer.
#[derive(Debug, Default)]
struct Silence {
    /// A call has heard nothing in its time.
    unanswered: Notify,
    /// Whether the guest is silent.
    known: watch::Sender<bool>,
}

/// Calls that are alike: `within` a deadline they answer with nothing to wait for, `patiently` they are waited for.
macro_rules! calls {
    (within $limit:ident; $($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)+) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`AgentError`].
            pub async fn $name(&self, request: &agent::$request) -> Result<agent::$answer, AgentError> {
                self.steps.enter(Step::CallAgent)?;
                self.heard(stringify!($name), HEARING).await?;
                let answer = self.client.$name(within($limit), request);
                self.explained((stringify!($name), $limit), answer).await
            }
        )+
    };
    (patiently; $($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)+) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`AgentError`].
            pub async fn $name(&self, request: &agent::$request) -> Result<agent::$answer, AgentError> {
                self.steps.enter(Step::CallAgent)?;
                let answer = self.client.$name(context::Context::default(), request);
                self.patiently(stringify!($name), answer).await
            }
        )+
    };
}

impl Agent {
    /// Speaks to the agent on the connection that it dialled.
    pub fn new(
        connection: UnixStream,
        steps: Arc<Steps>,
        loss: watch::Receiver<Option<Loss>>,
    ) -> Self {
        let client = AgentClient::new(Client::new(Socket::new(looked_at(connection))));
        Self { client, steps, loss, silence: Arc::default() }
    }

    /// Waits so long for the end of a silence.
    async fn heard(&self, call: &'static str, limit: Duration) -> Result<(), AgentError> {
        let mut silent = self.silence.known.subscribe();
        let heard = timeout(limit, silent.wait_for(|silent| !silent)).await;
        heard.map(drop).map_err(|_| AgentError::Silent { call, limit })
    }

    /// A call that ended with the sandbox tells what became of that.
    async fn explained<T>(
        &self,
        (call, limit): (&'static str, Duration),
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let began = Instant::now();
        let error = match answer.await {
            Ok(answer) => return Ok(answer),
            Err(error) => AgentError::new(call, error),
        };
        let AgentError::Lost { source, .. } = &error else { return Err(error) };
        // Who was merely not patient enough waits for nothing more.
        let broken = matches!(
            source,
            ttrpc::Error::Socket(_) | ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed
        );
        let patience = if broken { AFTERMATH } else { Duration::ZERO };
        let mut loss = self.loss.clone();
        let known = timeout(patience, loss.wait_for(Option::is_some)).await;
        let loss = known.ok().and_then(Result::ok).and_then(|loss| loss.clone());
        Err(match loss {
            Some(loss) => AgentError::SandboxLost { call, loss },
            None if !broken && began.elapsed() >= limit => {
                self.silence.unanswered.notify_one();
                AgentError::Silent { call, limit }
            }
            None => error,
        })
    }

    calls! {
        within DEADLINE;
        /// Makes a container in a sandbox that runs.
        create_container(CreateContainerRequest) -> ProcessCreated;
        /// Makes the pod's pid namespace, if it is not there yet.
        hold_pids(Empty) -> Empty;
        /// Writes back to the host what the guest caches of its files.
        flush(Empty) -> Empty;
        /// Changes a container's limits.
        update_container(UpdateContainerRequest) -> Empty;
        /// Forgets an ended process.
        delete_process(ProcessRef) -> Empty;
        /// Waits until a card has a device in the guest, as long as that may take.
        await_card(AwaitCardRequest) -> AwaitCardResponse;
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

    calls! {
        within ASKED_FOR;
        /// Makes and starts an additional process.
        exec_process(ExecProcessRequest) -> ProcessCreated;
        /// Sets a terminal's size.
        resize_terminal(ResizeTerminalRequest) -> Empty;
        /// Processes of a container, by guest pid.
        list_processes(ContainerRef) -> ListProcessesResponse;
        /// Freezes a container.
        pause_container(ContainerRef) -> Empty;
        /// Thaws a container.
        resume_container(ContainerRef) -> Empty;
    }

    /// Sends a signal; tried with a silent guest too.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn signal_process(
        &self,
        request: &agent::SignalProcessRequest,
    ) -> Result<agent::Empty, AgentError> {
        self.steps.enter(Step::CallAgent)?;
        let answer = self.client.signal_process(within(ASKED_FOR), request);
        self.explained(("signal_process", ASKED_FOR), answer).await
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
        self.heard("container_stats", STATS_DEADLINE).await?;
        let answer = self.client.container_stats(within(STATS_DEADLINE), request);
        self.explained(("container_stats", STATS_DEADLINE), answer).await
    }

    /// Waits, for as long as it takes, until a process has ended.
    ///
    /// # Errors
    /// [`AgentError::Lost`] when the agent's connection ends first, [`AgentError::SandboxLost`] when the sandbox does.
    pub async fn wait_process(
        &self,
        request: &agent::ProcessRef,
    ) -> Result<agent::ProcessEnd, AgentError> {
        let call = "wait_process";
        let answer = self.client.wait_process(context::Context::default(), request);
        let mut known = self.loss.clone();
        let lost = async {
            let loss = known.wait_for(Option::is_some).await.ok().and_then(|loss| loss.clone());
            // The connection ends with the sandbox, unless a proxy that is stuck in the host's kernel holds it open.
            tokio::time::sleep(STUCK).await;
            loss
        };
        tokio::select! {
            answer = answer => answer.map_err(|e| AgentError::new(call, e)),
            Some(loss) = lost => Err(AgentError::SandboxLost { call, loss }),
        }
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

    calls! {
        patiently;
        /// First of all: settings, network, and the first container, whose hooks take the time that they are given.
        start_sandbox(StartSandboxRequest) -> StartSandboxResponse;
        /// Has a container's init execute its program, after its hooks.
        start_container(ContainerRef) -> Empty;
        /// Follows the host's namespace. Until the guest has answered nobody knows what it has; of a change that was given up
        /// it may make something after the next one.
        update_network(NetworkChange) -> NetworkChanged;
    }

    /// Waits for an answer that comes when it comes, as long as the guest answers at all.
    async fn patiently<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        let mut answer = pin!(self.explained((call, Duration::MAX), answer));
        loop {
            match timeout(DEADLINE, &mut answer).await {
                Ok(answer) => return answer,
                Err(_) => self.silence.unanswered.notify_one(),
            }
        }
    }

    /// Waits until a call has heard nothing in its time.
    pub(crate) async fn unanswered(&self) {
        self.silence.unanswered.notified().await;
    }

    /// Waits until the guest is not silent, or the sandbox is lost: what takes back a call that was given up has to get there.
    pub async fn once_heard(&self) {
        let (mut silent, mut loss) = (self.silence.known.subscribe(), self.loss.clone());
        tokio::select! {
            // Either fails only when nobody is left to tell.
            _ = silent.wait_for(|silent| !silent) => {}
            _ = loss.wait_for(Option::is_some) => {}
        }
    }

    /// Notes whether the guest is silent.
    pub(crate) fn note_silence(&self, silent: bool) {
        self.silence.known.send_replace(silent);
    }

    /// Asks something small, and waits for the answer for as long as it takes.
    pub(crate) async fn answer(&self) -> Result<(), AgentError> {
        let question = agent::AdjustClockRequest::new();
        let answer = self.client.adjust_clock(context::Context::default(), &question).await;
        answer.map(drop).map_err(|e| AgentError::new("adjust_clock", e))
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
    use std::sync::Arc;

    use kata_protocol::agent::NetworkChange;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
        sync::watch,
    };

    use super::{Agent, DEADLINE, presentable};
    use crate::step::Steps;

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_network_is_not_given_up() {
        // Answers the only stream's request with an empty message.
        const RESPONSE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 1, 2, 0];
        let (near, mut far) = UnixStream::pair().unwrap();
        let (_known, loss) = watch::channel(None);
        let agent = Agent::new(near, Arc::new(Steps::default()), loss);
        let answers = async {
            far.read_exact(&mut [0; RESPONSE.len()]).await.unwrap();
            tokio::time::advance(DEADLINE * 10).await;
            far.write_all(&RESPONSE).await.unwrap();
        };
        let change = NetworkChange::default();
        let (answer, ()) = tokio::join!(agent.update_network(&change), answers);
        assert_eq!(answer.unwrap(), Default::default());
    }

    #[test]
    fn a_guests_words_are_one_harmless_line() {
        assert_eq!(presentable("a\x1b[2J\nb"), "a [2J b");
        assert_eq!(presentable(&"x".repeat(4 << 20)).len(), 1024);
    }
}
