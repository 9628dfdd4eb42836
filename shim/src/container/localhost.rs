//! Connections to localhost of the pod's network namespace, which lead into the guest.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use kata_engine_api::control::Dial;
use kata_protocol::{agent, hello::StreamKind};
use tokio::time::timeout;

use super::{Container, new_token};
use crate::{failure::Refusal, process::Process};

/// The stream is dialled before the agent answers, but on another connection.
const ARRIVAL: Duration = Duration::from_secs(10);

impl Container {
    /// Has the guest take a connection, and tells the monitor what became of it.
    pub(super) async fn dial(self: Arc<Self>, process: Arc<Process>, dial: Dial) {
        let Dial { number, address } = dial;
        let stream = match self.dial_guest(address).await {
            Ok(stream) => Some(stream),
            Err(refusal) => {
                // As with any port where nobody listens: nothing that a log should fill with.
                tracing::debug!(%address, message = refusal.message, "dial localhost in the guest");
                None
            }
        };
        process.monitor.dialled(number, stream).await;
    }

    async fn dial_guest(&self, address: SocketAddr) -> Result<OwnedFd, Refusal> {
        let agent = self.sandbox.agent()?;
        let token = new_token()?;
        let board = self.sandbox.switchboard();
        let stream = board.expect(token, StreamKind::Localhost);
        let request = agent::DialLocalhostRequest {
            address: address.ip().to_string(),
            port: address.port().into(),
            token: token.to_vec(),
            ..Default::default()
        };
        let dialled = async {
            agent.dial_localhost(&request).await?;
            match timeout(ARRIVAL, stream).await {
                Ok(Ok(stream)) => Ok(stream),
                _ => Err(Refusal::precondition("the guest's stream did not arrive")),
            }
        };
        let dialled = dialled.await;
        if dialled.is_err() {
            board.forget(token);
        }
        dialled
    }
}
