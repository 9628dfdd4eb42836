//! Kills for want of memory. Those of the guest's OOM killer in the container are told when it strikes, not when the container
//! ends, for it may strike another process than the container's own; where the whole guest is lost to one, the guest's or
//! the host's, the container's end tells it.

use std::{fs::File, sync::Arc, time::Duration};

use kata_protocol::agent;
use rustix::fs::{Mode, OFlags, openat};

use super::Container;

/// What engines look for in the bundle (CRI-O, and conmon, which writes it itself where the host's group tells).
const OOM_FILE: &str = "oom";

/// Between two that are told.
const PAUSE: Duration = Duration::from_secs(1);

impl Container {
    /// Follows the count until the container has ended or the guest is gone.
    pub(super) async fn watch_oom(self: Arc<Self>) {
        let mut seen = 0;
        loop {
            let request = agent::WaitOomRequest {
                container_id: self.init.container_id.clone(),
                seen,
                ..Default::default()
            };
            let Ok(agent) = self.sandbox.agent() else { return };
            let count = tokio::select! {
                count = agent.wait_oom(&request) => count,
                _ = self.init.wait() => return,
            };
            match count {
                Ok(count) if count.kills > seen => {
                    // There is always a count beyond it that may be waited for.
                    seen = count.kills.min(u64::MAX - 1);
                    tracing::warn!(kills = seen, "the guest's OOM killer has struck the container");
                    self.mark_bundle();
                    self.oom_kills.send_replace(seen);
                    // A guest that counts for ever makes no more of engines and of the log than this.
                    tokio::time::sleep(PAUSE).await;
                }
                // Its init has ended, or a guest that is not ours to trust answers without need.
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "wait for the OOM killer");
                    return;
                }
            }
        }
    }

    /// Waits until the OOM killer has struck more often than that; returns how often.
    pub async fn oom_kills_beyond(&self, seen: u64) -> u64 {
        let mut kills = self.oom_kills.subscribe();
        // The sender is `self`'s, so it outlives the wait.
        kills.wait_for(|count| *count > seen).await.map_or(seen, |count| *count)
    }

    pub(super) fn mark_bundle(&self) {
        let Some(bundle) = &self.bundle else { return };
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(bundle, OOM_FILE, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => drop(File::from(file)),
            Err(error) => tracing::warn!(%error, "write the file oom to the bundle"),
        }
    }
}
