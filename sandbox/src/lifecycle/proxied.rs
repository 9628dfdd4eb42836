//! What the proxy says while it lives, and what is done to what it serves.

use std::{sync::Arc, time::Duration};

use kata_protocol::agent;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{Sandbox, SandboxError};
use crate::packet::PacketSocket;

/// At least between two calls for a guest to drop inodes that it caches.
const BETWEEN_DROPS: Duration = Duration::from_millis(200);

impl Sandbox {
    /// Lets a volume be written to that was attached read-only. A boot that is under way is waited for, however long
    /// it takes, for its proxy may have the tree as it was before. Where a container stands for the pod, the VM runs before
    /// others are made.
    ///
    /// # Errors
    /// [`SandboxError::Share`].
    pub async fn open_volume(&self, number: usize) -> Result<(), SandboxError> {
        let _no_boot = self.booting.lock().await;
        let proxy = self.live().proxy.clone();
        Ok(self.tree.open_volume(number, proxy.as_deref(), &self.steps)?)
    }

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
