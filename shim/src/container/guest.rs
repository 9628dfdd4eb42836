//! How a container comes into its guest, and leaves it.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use kata_engine_api::record::Cause;
use kata_protocol::agent;
use kata_sandbox::{agent::AgentError, lifecycle::Boot};
use tokio::time::timeout;
use ttrpc::Code;

use super::{CACHES, Container, Role, new_token, obedience};
use crate::{
    failure::Refusal,
    process::{LOST, Outcome, Phase},
};

/// What a guest is booted with.
enum First {
    None,
    /// The container itself.
    This,
}

impl Container {
    /// Has the guest run the container; boots the guest, if that is the container's part.
    pub(super) async fn bring_up(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut entered = self.entered.lock().await;
        match self.role {
            // One round trip for all of it.
            Role::Alone if !*entered => self.boot(First::This).await,
            Role::Pod => self.boot(First::None).await,
            Role::Alone | Role::Member => {
                if !*entered {
                    self.enter().await?;
                    *entered = true;
                }
                if self.init.is_doomed() || self.init.phase() != Phase::Starting {
                    // Who ended it did so when the guest may not have had it.
                    self.end_in_guest().await;
                    return Err(Refusal::precondition("the container was killed before its start"));
                }
                self.run_program().await
            }
        }
    }

    /// Has the guest make a container that is only created, because somebody wants another process in it.
    pub(super) async fn enter_early(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut entered = self.entered.lock().await;
        if *entered {
            return Ok(());
        }
        if let Err(refusal) = self.enter().await {
            if self.role == Role::Alone {
                // A sandbox boots once.
                let why = Some(refusal.message.clone());
                let outcome = Outcome::unstarted(LOST, self.why_unstarted(), why);
                self.conclude(&self.init, outcome).await;
            }
            return Err(refusal);
        }
        *entered = true;
        tokio::spawn(self.clone().outlive_nothing());
        self.record_facts(|_| ());
        Ok(())
    }

    /// Why a start has failed that nobody wanted to.
    pub(super) fn why_unstarted(&self) -> Cause {
        match self.sandbox.loss() {
            _ if !self.sandbox.came_up() => Cause::BootFailed,
            Some(loss) => Outcome::of_loss(&loss).end.cause,
            None => Cause::StartFailed,
        }
    }

    /// Until it is started nothing of it is waited for, and yet it ends with its sandbox.
    async fn outlive_nothing(self: Arc<Self>) {
        let loss = self.sandbox.lost().await;
        if self.init.phase() == Phase::Created {
            let outcome = self.init.outcome_of_loss(&loss);
            self.conclude(&self.init, outcome).await;
        }
    }

    /// Has the guest make it; its program waits.
    async fn enter(self: &Arc<Self>) -> Result<(), Refusal> {
        // Also a group of containers without one that stands for the sandbox: the first to start boots it.
        self.boot(First::None).await?;
        let agent = self.sandbox.agent()?;
        if self.shares_pids {
            agent.hold_pids(&agent::Empty::new()).await?;
        }
        for copy in &self.copies {
            copy.write(&agent).await.map_err(|e| Refusal::internal(&e))?;
        }
        let request = self.request()?;
        self.init.note_in_guest(true);
        let made = agent.create_container(&request).await;
        if let Err(error) = &made {
            self.forget_streams(&request);
            // What the guest refuses is not there, unless an earlier attempt has come to be; what it does not answer to may.
            let refused =
                matches!(error, AgentError::Refused { code, .. } if *code != Code::ALREADY_EXISTS);
            self.init.note_in_guest(!refused);
        }
        let guest_pid = made?.guest_pid;
        if let Err(refusal) = self.bring_processors_up().await {
            if let Err(error) = obedience::put_away(&agent, &self.init).await {
                tracing::warn!(%error, "take a container back from the guest");
            }
            return Err(refusal);
        }
        self.guest_pid.store(guest_pid, Ordering::Relaxed);
        Ok(())
    }

    /// Has the guest end a member whose end the host has decided, if it may be there; says whether the guest does what it is told.
    pub(super) async fn end_in_guest(&self) -> bool {
        match self.sandbox.agent() {
            Ok(agent) if self.role == Role::Member && self.init.is_in_guest() => {
                obedience::end(&agent, &self.init).await
            }
            _ => true,
        }
    }

    /// Lets its program run.
    async fn run_program(&self) -> Result<(), Refusal> {
        Ok(obedience::run(&self.sandbox.agent()?, &self.init).await?)
    }

    /// Boots the guest, unless it runs; what was to be first in one that was booted before is refused.
    async fn boot(self: &Arc<Self>, first: First) -> Result<(), Refusal> {
        let Some(turn) = self.sandbox.turn_to_boot().await? else {
            return match first {
                First::None => Ok(()),
                First::This => Err(Refusal::precondition("the sandbox was booted already")),
            };
        };
        let first = match first {
            First::None => None,
            First::This => Some(self.request()?),
        };
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        let resolver = self.expect_resolver()?;
        let boot = Boot { network, first: first.clone(), common: self.common.clone(), resolver };
        let booted = self.sandbox.boot(turn, boot).await;
        if let (Err(_), Some(first)) = (&booted, &first) {
            self.forget_streams(first);
        }
        if let (Err(_), Some(token)) = (&booted, resolver) {
            self.sandbox.switchboard().forget(token);
        }
        booted?;
        let listeners = self.sandbox.take_localhost();
        if !listeners.is_empty() {
            self.init.monitor.serve_localhost(&listeners).await;
        }
        Ok(())
    }

    /// The request that makes it; its streams are expected from now on.
    fn request(self: &Arc<Self>) -> Result<agent::CreateContainerRequest, Refusal> {
        let token = new_token()?;
        let stdio = self.init.expect_streams(self.sandbox.switchboard(), token);
        Ok(agent::CreateContainerRequest {
            container_id: self.init.container_id.clone(),
            spec: self.spec.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            root: self.guest_root.clone(),
            memory: self.memory.clone(),
            stdio: Some(stdio).into(),
            ..Default::default()
        })
    }

    fn forget_streams(&self, request: &agent::CreateContainerRequest) {
        let stdio = &request.stdio;
        // Of what the host throws away there is none.
        let tokens =
            [&stdio.stdin_token, &stdio.stdout_token, &stdio.stderr_token, &stdio.terminal_token];
        for token in tokens {
            if let Ok(token) = token.as_slice().try_into() {
                self.sandbox.switchboard().forget(token);
            }
        }
    }

    pub(super) fn reference(&self) -> agent::ContainerRef {
        self.init.container_reference()
    }

    /// Has the guest end what is left of the container and write its files back to the host.
    pub(super) async fn settle_guest(&self) {
        if self.role != Role::Member {
            return self.sandbox.quiesce().await;
        }
        let Ok(agent) = self.sandbox.agent() else { return };
        if !matches!(timeout(CACHES, agent.flush(&agent::Empty::new())).await, Ok(Ok(_))) {
            tracing::warn!("guest did not write its files back");
        }
    }

    /// Takes everything away that the guest, the shared tree and the host's groups have of a member.
    pub async fn leave(&self) -> Result<(), Refusal> {
        if let Ok(agent) = self.sandbox.agent()
            && let Err(error) = obedience::leave(&agent, &self.init, &self.copies).await
        {
            tracing::warn!(%error, "guest did not let go of all that is the container's");
        }
        let detached = self.sandbox.tree().detach(&self.init.container_id);
        detached.map_err(|e| Refusal::internal(&e))?;
        self.sandbox.remove_member(&self.init.container_id, self.resources.group()).await?;
        Ok(())
    }
}
