//! What the record says of the sandbox, kept true: how links are passed, and whether the guest answers.

use std::sync::Arc;

use super::Container;

impl Container {
    /// Until the container has ended.
    pub(super) async fn note_sandbox(self: Arc<Self>) {
        let (mut network, mut guest) = (self.sandbox.network_note(), self.sandbox.guest_note());
        loop {
            let (changed, is_link) = tokio::select! {
                changed = network.changed() => (changed, true),
                changed = guest.changed() => (changed, false),
                _ = self.init.wait() => return,
            };
            if changed.is_err() {
                return;
            }
            self.record_facts(|_| {});
            if is_link {
                // It may be that of a network with names of its own.
                self.serve_resolver_if_asked().await;
            }
        }
    }
}
