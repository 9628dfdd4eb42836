//! What the proxy says while it lives.

use std::{sync::Arc, time::Duration};

use kata_protocol::agent;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::Sandbox;
use crate::packet::PacketSocket;

/// At least between two calls for a guest to drop inodes that it caches.
const BETWEEN_DROPS: Duration = Duration::from_millis(200);

impl Sandbox {
    /// Takes the guest's connections from the proxy, and what it says of the guest's inodes.
    pub(super) fn hear_proxy(self: &Arc<Self>, control: PacketSocket) {
        let pressure = Arc::new(Notify::new());
        let drops = tokio::spawn(self.clone().drop_guest_caches(pressure.clone()));
        let served = self.board.clone().serve(control, move || pressure.notify_one());
        tokio::spawn(async move {
            served.await;
            drops.abort();
        });
    }

    /// Asks the guest to drop inodes that it caches, whenever it has too many. A guest can say that as often as it likes, so
    /// it is asked by one call at a time, and not at once again.
    async fn drop_guest_caches(self: Arc<Self>, pressure: Arc<Notify>) {
        let mut pace = interval(BETWEEN_DROPS);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pressure.notified().await;
            pace.tick().await;
            let Ok(agent) = self.agent() else { continue };
            if let Err(error) = agent.drop_caches(&agent::Empty::new()).await {
                tracing::debug!(%error, "ask the guest to drop cached inodes");
            }
        }
    }
}
