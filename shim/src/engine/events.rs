//! Events for the engine: sent in order, one after the other, each until it is taken.
//!
//! An engine that is away loses none, however long: what can't be sent waits. That is no more than what follows from its own
//! calls; of events that a guest makes without any only so many wait, and the newest are lost.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use kata_engine_api::containerd::{
    any::Any,
    forward::{Envelope, ForwardRequest},
    forward_ttrpc::EventsClient,
    timestamp::Timestamp,
};
use protobuf::MessageFull;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{self, timeout},
};
use ttrpc::asynchronous::{Client, transport::Socket};

use super::view::{HostView, Mounts};

/// What waits at most of what nobody has called for; containerd's own shim keeps as many events.
const UNASKED: usize = 2048;

/// An engine that runs takes an event at once.
const DEADLINE: Duration = Duration::from_secs(5);

/// Between attempts to reach an engine that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// So long a shim that ends waits for its last events to be taken.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where events are handed in.
pub struct Publisher {
    namespace: String,
    queue: Mutex<Option<mpsc::UnboundedSender<Waiting>>>,
    unasked: Arc<Semaphore>,
    sender: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// An event, and its place among those that nobody has called for.
struct Waiting(Envelope, Option<OwnedSemaphorePermit>);

impl Publisher {
    /// Sends to the socket at `address`, as the engine sees it; without one, events go nowhere, as for CRI-O.
    pub fn start(address: Option<String>, namespace: String, view: HostView) -> Self {
        let (queue, sender) = address.map_or((None, None), |address| {
            let (queue, waiting) = mpsc::unbounded_channel();
            let engine = Arc::new(EngineSocket { address, view });
            (Some(queue), Some(tokio::spawn(send_all(engine, waiting))))
        });
        let (queue, sender) = (Mutex::new(queue), Mutex::new(sender));
        Self { namespace, queue, unasked: Arc::new(Semaphore::new(UNASKED)), sender }
    }

    /// The engine's namespace that the sandbox is in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Hands in an event that follows from a call of the engine's.
    pub fn publish(&self, topic: &str, event: &impl MessageFull) {
        self.hand_in(topic, event, None);
    }

    /// Hands in one that a guest may make as often as it likes.
    pub fn publish_unasked(&self, topic: &str, event: &impl MessageFull) {
        match self.unasked.clone().try_acquire_owned() {
            Ok(place) => self.hand_in(topic, event, Some(place)),
            Err(_) => {
                tracing::error!(topic, "the engine takes no events, and too many wait: one is lost")
            }
        }
    }

    fn hand_in(&self, topic: &str, event: &impl MessageFull, place: Option<OwnedSemaphorePermit>) {
        let Some(queue) = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            return;
        };
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, topic, "encode an event");
                return;
            }
        };
        let name = full_name(event);
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: Some(Any { type_url: name, value, ..Default::default() }).into(),
            ..Default::default()
        };
        if queue.send(Waiting(envelope, place)).is_err() {
            tracing::error!(topic, "nobody sends events any more: one is lost");
        }
    }

    /// Takes no more, and waits a little until the last ones are taken.
    pub async fn finish(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender
            && timeout(FAREWELL, sender).await.is_err()
        {
            tracing::warn!("the engine did not take the last events");
        }
    }
}

struct EngineSocket {
    address: String,
    view: HostView,
}

impl EngineSocket {
    async fn connect(&self) -> Option<EventsClient> {
        let path = self.address.trim_start_matches("unix://").to_owned();
        let connected = self.view.run(Mounts::Engine, move || UnixStream::connect(path)).await;
        match connected {
            Ok(Ok(stream)) => {
                let socket = Socket::try_from(stream).ok()?;
                Some(EventsClient::new(Client::new(socket)))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "connect to the engine");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "connect to the engine");
                None
            }
        }
    }
}

async fn send_all(engine: Arc<EngineSocket>, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut client = None;
    while let Some(Waiting(envelope, _place)) = waiting.recv().await {
        let request = ForwardRequest { envelope: Some(envelope).into(), ..Default::default() };
        loop {
            if client.is_none() {
                client = engine.connect().await;
            }
            let Some(connected) = &client else {
                // No event tells that the engine is back.
                time::sleep(PAUSE).await;
                continue;
            };
            let context = ttrpc::context::with_duration(DEADLINE);
            match connected.forward(context, &request).await {
                Ok(_) => break,
                // It has heard, and does not want it; it would not the next time.
                Err(ttrpc::Error::RpcStatus(status)) => {
                    tracing::warn!(message = status.message, "the engine refuses an event");
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "send an event");
                    client = None;
                    // As above.
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The name of a message, which is its type URL in containerd.
fn full_name<M: MessageFull>(_: &M) -> String {
    M::descriptor().full_name().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kata_engine_api::containerd::task_events::{TaskExit, TaskOOM};
    use tokio::sync::{Semaphore, mpsc};

    use super::{Publisher, UNASKED};

    #[test]
    fn what_a_guest_makes_without_end_keeps_no_other_event_away() {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let publisher = Publisher {
            namespace: "n".into(),
            queue: Mutex::new(Some(queue)),
            unasked: Arc::new(Semaphore::new(UNASKED)),
            sender: Mutex::default(),
        };
        for _ in 0..UNASKED + 1 {
            publisher.publish_unasked("/tasks/oom", &TaskOOM::default());
        }
        publisher.publish("/tasks/exit", &TaskExit::default());
        let topics: Vec<String> =
            std::iter::from_fn(|| waiting.try_recv().ok()).map(|waiting| waiting.0.topic).collect();
        assert_eq!((topics.len(), topics[UNASKED].as_str()), (UNASKED + 1, "/tasks/exit"));
        assert_eq!(publisher.unasked.available_permits(), UNASKED, "there is room again");
    }
}
