//! What a guest is told of a member that the host has given up, so that it does not run on there.

use std::{sync::Arc, time::Duration};

use kata_protocol::agent;
use kata_sandbox::agent::{Agent, AgentError};
use tokio::time::timeout;
use ttrpc::Code;

use crate::{
    copies::Copy,
    process::{Process, SIGKILL},
};

/// An init that was killed, or that could not execute its program, is ending when the guest says so.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// Has the guest let the program of a container run that it has made; its hooks take the time that they are given.
///
/// # Errors
/// [`AgentError`]; nothing of it runs then.
pub(super) async fn run(agent: &Agent, init: &Arc<Process>) -> Result<(), AgentError> {
    let started = agent.start_container(&init.container_reference()).await;
    if matches!(started, Err(AgentError::Refused { .. })) {
        // Its init has ended, or is ending, since it could not execute its program.
        await_end(agent, init).await;
    }
    started.map(drop)
}

/// Has the guest end a container whose end the host has decided; says whether it may have.
pub(super) async fn end(agent: &Agent, init: &Process) -> bool {
    kill_all(agent, init).await && await_end(agent, init).await
}

/// Has the guest forget a container, and end it first if it has not ended there.
///
/// # Errors
/// [`AgentError`].
pub(super) async fn put_away(agent: &Agent, init: &Arc<Process>) -> Result<(), AgentError> {
    let reference = init.reference();
    let mut answer = agent.delete_process(&reference).await;
    if matches!(answer, Err(AgentError::Refused { code: Code::FAILED_PRECONDITION, .. })) {
        tracing::warn!(id = init.container_id, "the guest has not ended the container yet");
        end(agent, init).await;
        answer = agent.delete_process(&reference).await;
    }
    match answer {
        // One that never was in the guest, too.
        Ok(_) | Err(AgentError::Refused { code: Code::NOT_FOUND, .. }) => Ok(()),
        Err(error) => {
            tokio::spawn(disown(agent.clone(), init.clone()));
            Err(error)
        }
    }
}

/// Has the guest forget a container and its copies of volumes. Of one that does not answer nothing more is asked.
///
/// # Errors
/// The last [`AgentError`].
pub(super) async fn leave(
    agent: &Agent,
    init: &Arc<Process>,
    copies: &[Arc<Copy>],
) -> Result<(), AgentError> {
    let mut left = put_away(agent, init).await;
    for copy in copies {
        if !matches!(left, Ok(()) | Err(AgentError::Refused { .. })) {
            break;
        }
        left = copy.remove(agent).await.and(left);
    }
    left
}

/// The same of a guest that hangs: it does so when it goes on, and nobody waits for that.
async fn disown(agent: Agent, init: Arc<Process>) {
    let reference = init.reference();
    agent.once_heard().await;
    // One that is still being made is given up by that.
    let mut forgotten = agent.delete_process(&reference).await;
    if forgotten.is_err() {
        let (_, ended) = tokio::join!(kill_all(&agent, &init), agent.wait_process(&reference));
        if ended.is_ok() {
            forgotten = agent.delete_process(&reference).await;
        }
    }
    if let Err(error) = forgotten {
        tracing::debug!(%error, "forget a container that was given up");
    }
}

/// Waits until the guest says that a process has ended, which it is about to; says whether it has.
async fn await_end(agent: &Agent, init: &Process) -> bool {
    match timeout(LAST_BREATH, agent.wait_process(&init.reference())).await {
        Ok(Ok(_)) => {
            init.note_in_guest(false);
            true
        }
        // Not there any more.
        Ok(Err(AgentError::Refused { .. })) => true,
        silence => {
            tracing::debug!(?silence, "wait for an init that is ending");
            false
        }
    }
}

/// Has the guest kill all that is in a container; says whether it has. One that it does not have needs that no more.
async fn kill_all(agent: &Agent, init: &Process) -> bool {
    let kill = agent::SignalProcessRequest {
        process: Some(init.reference()).into(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    match agent.signal_process(&kill).await {
        Ok(_) | Err(AgentError::Refused { code: Code::NOT_FOUND, .. }) => true,
        Err(error) => {
            tracing::debug!(%error, "kill a container in the guest");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::Duration};

    use kata_sandbox::agent::AgentError;
    use tokio::time::{Instant, timeout};
    use ttrpc::Code;

    use super::{LAST_BREATH, leave, put_away, run};
    use crate::{
        container::fake_agent::{FakeAgent, init, refusal},
        copies::Copy,
    };

    /// tokio's clock ticks in milliseconds.
    const TICKS: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_start_takes_as_long_as_its_hooks() {
        let connected = FakeAgent::connected(None).await;
        let init = init();
        let started = timeout(Duration::from_secs(3600), run(&connected.agent, &init)).await;
        assert!(started.is_err(), "{started:?}");
        assert_eq!(connected.fake.calls(), ["start_container"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_program_that_is_refused_is_not_waited_for_forever() {
        let refused = Some(Err(refusal(Code::NOT_FOUND)));
        let connected = FakeAgent::connected(refused).await;
        let begun = Instant::now();
        let error = run(&connected.agent, &init()).await.unwrap_err();
        assert!(matches!(error, AgentError::Refused { .. }), "{error}");
        assert!(begun.elapsed() <= LAST_BREATH + TICKS, "{:?}", begun.elapsed());
        assert_eq!(connected.fake.calls(), ["start_container", "wait_process"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_runs_on_in_its_guest_is_ended_before_it_is_forgotten() {
        let connected = FakeAgent::connected(None).await;
        put_away(&connected.agent, &init()).await.unwrap();
        let calls = ["delete_process", "signal_process", "wait_process", "delete_process"];
        assert_eq!(connected.fake.calls(), calls);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_silent_is_asked_for_nothing_more() {
        let tree = || File::open("/").unwrap().into();
        let copies = [Copy::in_guest(1, tree()), Copy::in_guest(2, tree())];
        let silent = FakeAgent::silent().await;
        leave(&silent.agent, &init(), &copies).await.unwrap_err();
        assert!(!silent.fake.calls().contains(&"remove_volume"));
        let willing = FakeAgent::connected(None).await;
        leave(&willing.agent, &init(), &copies).await.unwrap();
        assert_eq!(willing.fake.calls()[4..], ["remove_volume"; 2]);
    }
}
