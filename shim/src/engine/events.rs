//! Events for the engine: sent in order, one after the other, each until it is taken.
//!
//! A restarting engine loses none: what can't be sent waits in a queue. An engine that stays away for so long that the
//! queue is full loses the newest, for the oldest tell how what it knows has ended.

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
    sync::mpsc,
    time::{self, timeout},
};
use ttrpc::asynchronous::{Client, transport::Socket};

use super::view::{Mounts, View};

/// What waits at most; a busy pod has a few events a second.
const QUEUE: usize = 2048;

/// An engine that runs takes an event at once.
const DEADLINE: Duration = Duration::from_secs(5);

/// Between attempts to reach an engine that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// So long a shim that ends waits for its last events to be taken.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where events are handed in.
pub struct Publisher {
    namespace: String,
    queue: Mutex<Option<mpsc::Sender<Envelope>>>,
    sender: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Publisher {
    /// Sends to the socket at `address`, as the engine sees it; without one, events go nowhere, as for CRI-O.
    pub fn start(address: Option<String>, namespace: String, view: View) -> Self {
        let Some(address) = address else {
            return Self { namespace, queue: Mutex::default(), sender: Mutex::default() };
        };
        let (queue, waiting) = mpsc::channel(QUEUE);
        let engine = Arc::new(EngineSocket { address, view });
        let sender = tokio::spawn(send_all(engine, waiting));
        Self { namespace, queue: Mutex::new(Some(queue)), sender: Mutex::new(Some(sender)) }
    }

    /// The engine's namespace that the sandbox is in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Hands in an event.
    pub fn publish(&self, topic: &str, event: &impl MessageFull) {
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
        if queue.try_send(envelope).is_err() {
            tracing::error!(topic, "the engine takes no events, and too many wait: one is lost");
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
    view: View,
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

async fn send_all(engine: Arc<EngineSocket>, mut waiting: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
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
