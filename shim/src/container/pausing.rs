//! A container that is paused, and resumed.

use kata_engine_api::record::Status;
use kata_protocol::agent;
use kata_sandbox::agent::AgentError;
use tokio::time::timeout;

use super::{CACHES, Container};
use crate::failure::Refusal;

impl Container {
    /// Freezes or thaws every process of the container.
    ///
    /// People and engines do so around what they do with its files (`docker commit`): what it has written is on the host by
    /// then, and what was changed there meanwhile is looked up again.
    pub async fn set_paused(&self, paused: bool) -> Result<(), Refusal> {
        self.must_be_in_guest()?;
        let (from, to, otherwise) = if paused {
            (Status::Running, Status::Paused, "container not running")
        } else {
            (Status::Paused, Status::Running, "container not paused")
        };
        if self.record().status != from {
            return Err(Refusal::precondition(otherwise));
        }
        let container = self.reference();
        let agent = self.sandbox.agent()?;
        let none = agent::Empty::new();
        if paused {
            if let Err(error) = agent.pause_container(&container).await {
                if !matches!(error, AgentError::Refused { .. }) {
                    // A guest that hangs may do it when it goes on; nobody waits for that.
                    tokio::spawn(async move {
                        agent.once_heard().await;
                        agent.resume_container(&container).await
                    });
                }
                return Err(error.into());
            }
            self.update_record(|record| record.status = to);
            if !matches!(timeout(CACHES, agent.flush(&none)).await, Ok(Ok(_))) {
                tracing::warn!("guest did not write its files back");
            }
        } else {
            if !matches!(timeout(CACHES, agent.drop_caches(&none)).await, Ok(Ok(_))) {
                tracing::warn!("guest did not drop what it remembers of its files");
            }
            agent.resume_container(&container).await?;
            self.update_record(|record| record.status = to);
        }
        Ok(())
    }

    /// Waits until it is not paused.
    pub async fn resumed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.record().status != Status::Paused {
                return;
            }
            changed.await;
        }
    }
}
