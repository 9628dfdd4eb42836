//! What a guest is told of a member that the host has given up, so that it does not run on there.

use std::{sync::Arc, time::Duration};

use kata_protocol::agent;
use kata_sandbox::agent::{Agent, AgentError};
use tokio::time::timeout;

use crate::process::{Process, SIGKILL};

/// An init that could not execute its program is ending when the guest says so.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// Has the guest let the program of a container run that it has made.
///
/// # Errors
/// [`AgentError`]; nothing of it runs then, or no longer than until the guest hears of it.
pub(super) async fn run(agent: &Agent, init: &Arc<Process>) -> Result<(), AgentError> {
    let Err(error) = agent.start_container(&init.container_reference()).await else {
        return Ok(());
    };
    if matches!(error, AgentError::Refused { .. }) {
        // Its init has ended, or is ending, since it could not execute its program.
        let ended = timeout(LAST_BREATH, agent.wait_process(&init.reference())).await;
        if !matches!(ended, Ok(Ok(_))) {
            tracing::debug!(?ended, "wait for an init that did not start");
        }
    } else {
        // The guest goes on with it, when it can; nobody waits for that.
        let (agent, init) = (agent.clone(), init.clone());
        tokio::spawn(async move { kill_all(&agent, &init).await });
    }
    Err(error)
}

/// Has the guest kill all that is in a container. One that it does not have needs that no more.
pub(super) async fn kill_all(agent: &Agent, init: &Process) {
    let kill = agent::SignalProcessRequest {
        process: Some(init.reference()).into(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    match agent.signal_process(&kill).await {
        Ok(_) | Err(AgentError::Refused { code: ttrpc::Code::NOT_FOUND, .. }) => {}
        Err(error) => tracing::warn!(%error, "kill a container in the guest"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kata_sandbox::agent::AgentError;
    use tokio::time::{Instant, timeout};
    use ttrpc::Code;

    use super::{LAST_BREATH, run};
    use crate::container::fake_agent::{FakeAgent, init, refusal};

    /// tokio's clock ticks in milliseconds.
    const TICKS: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_start_that_is_not_answered_comes_back_and_kills_what_it_began() {
        let connected = FakeAgent::connected(None).await;
        let started = timeout(Duration::from_secs(300), run(&connected.agent, &init())).await;
        let error = started.expect("it comes back").unwrap_err();
        assert!(matches!(error, AgentError::Silent { .. } | AgentError::Lost { .. }), "{error}");
        connected.fake.killed().await;
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
}
