//! The record's line on how links are passed, kept true while they come and go.

use std::sync::Arc;

use super::Container;

impl Container {
    /// Until the container has ended.
    pub(super) async fn note_network(self: Arc<Self>) {
        let mut note = self.sandbox.network_note();
        loop {
            tokio::select! {
                changed = note.changed() => if changed.is_err() {
                    return;
                },
                _ = self.init.wait() => return,
            }
            let text = note.borrow_and_update().clone();
            let noted = self.update_record(|record| {
                record.sandbox.insert("network".into(), text);
            });
            // A link that came may be that of a network with names of its own.
            self.serve_resolver_if_asked().await;
            if let Err(refusal) = noted {
                tracing::warn!(message = refusal.message, "record the network");
            }
        }
    }
}
