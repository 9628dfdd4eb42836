//! The task that owns the socket, and the handle to it.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
};

use super::{Event, Message, QmpError};

/// Longest line; the longest answer that the driver asks for, the list of types, has some 100 KiB.
const LINE: usize = 512 * 1024;

/// Commands that wait to be sent.
const COMMANDS: usize = 16;

/// Events that a slow subscriber may be behind.
const EVENTS: usize = 64;

type Answer = oneshot::Sender<Result<Value, QmpError>>;

struct Command {
    text: Value,
    /// Goes with it.
    descriptor: Option<OwnedFd>,
    answer: Answer,
}

/// A handle to one monitor; clones speak to the same.
#[derive(Debug, Clone)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
}

impl Qmp {
    /// Speaks QMP over a connected socket, in a task of its own, negotiation included.
    pub fn start(socket: UnixStream) -> Self {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (events, _) = broadcast::channel(EVENTS);
        let session = Session { waiting: HashMap::new(), next: 0, events: events.clone() };
        tokio::spawn(session.run(socket, queue));
        Self { commands, events }
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits until the connection is over and all its events have been passed on.
    pub async fn closed(&self) {
        self.commands.closed().await;
    }

    /// Has a command without arguments carried out.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute(&self, command: &str, deadline: Duration) -> Result<Value, QmpError> {
        self.send(json!({ "execute": command }), None, deadline).await
    }

    /// Has a command carried out.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn execute_with(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.send(json!({ "execute": command, "arguments": arguments }), None, deadline).await
    }

    /// Gives QEMU a descriptor, which later commands know by `name`.
    ///
    /// # Errors
    /// See [`QmpError`].
    pub async fn hand_over(
        &self,
        name: &str,
        descriptor: OwnedFd,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        let text = json!({ "execute": "getfd", "arguments": { "fdname": name } });
        self.send(text, Some(descriptor), deadline).await.map(drop)
    }

    async fn send(
        &self,
        text: Value,
        descriptor: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let command = Command { text, descriptor, answer };
            self.commands.send(command).await.map_err(|_| QmpError::Closed)?;
            answered.await.map_err(|_| QmpError::Closed)?
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Deadline(deadline)),
        }
    }
}

struct Session {
    waiting: HashMap<u64, Answer>,
    next: u64,
    events: broadcast::Sender<Event>,
}

impl Session {
    /// Serves until either side ends; what still waits then fails with [`QmpError::Closed`], for its sender is dropped.
    async fn run(mut self, socket: UnixStream, mut queue: mpsc::Receiver<Command>) {
        let (reader, mut writer) = socket.into_split();
        let mut lines = Lines { reader: BufReader::new(reader), line: Vec::new() };
        // No need to wait for the greeting: QEMU reads nothing before it has sent that.
        if writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                line = lines.next() => match line.map(|line| Message::parse(&line)) {
                    Some(Ok(message)) => self.take(message),
                    Some(Err(error)) => return tracing::debug!(%error, "monitor given up"),
                    None => return,
                },
                command = queue.recv() => {
                    let Some(Command { text, descriptor, answer }) = command else { return };
                    let line = self.register(text, answer);
                    let sent = match descriptor {
                        None => writer.write_all(line.as_bytes()).await,
                        Some(descriptor) => send_with(writer.as_ref(), &line, &descriptor).await,
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn register(&mut self, mut text: Value, answer: Answer) -> String {
        // Callers whose deadline has passed are gone.
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.next += 1;
        text["id"] = self.next.into();
        self.waiting.insert(self.next, answer);
        format!("{text}\n")
    }

    fn take(&mut self, message: Message) {
        let (id, result) = match message {
            Message::Return { id, value } => (id, Ok(value)),
            Message::Error { id, class, description } => {
                (id, Err(QmpError::Refused { class, description }))
            }
            Message::Event(event) => {
                // No subscriber is no error.
                self.events.send(event).ok();
                return;
            }
            Message::Greeting => return,
        };
        if let Some(answer) = id.and_then(|id| self.waiting.remove(&id)) {
            // The caller may have given up just now.
            answer.send(result).ok();
        }
    }
}

/// Such a line is short, and goes whole or not at all.
async fn send_with(socket: &UnixStream, line: &str, descriptor: &OwnedFd) -> io::Result<()> {
    let send = || kata_sys::scm::send(socket, line.as_bytes(), &[descriptor.as_fd()]);
    socket.async_io(Interest::WRITABLE, send).await
}

/// Lines of bounded length. Cancelling [`Lines::next`] loses nothing: what was read stays in `line`.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// The next line; `None` at the end, on an error, or when the line is too long.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let buffer = self.reader.fill_buf().await.ok()?;
            if buffer.is_empty() {
                return None;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            self.line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if self.line.len() > LINE {
                return None;
            }
            if end.is_some() {
                return Some(std::mem::take(&mut self.line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixStream,
    };

    use super::{LINE, Qmp};
    use crate::qmp::{Event, QmpError};

    const SOON: Duration = Duration::from_secs(10);

    /// A monitor that answers each command with the given lines; `$id` is the command's.
    fn monitor(answers: &'static [&'static str]) -> Qmp {
        let (near, far) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = far.into_split();
            let mut commands = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\":{}}\r\n").await.unwrap();
            commands.next_line().await.unwrap();
            writer.write_all(b"{\"return\":{}}\r\n").await.unwrap();
            for answer in answers {
                let command = commands.next_line().await.unwrap().unwrap();
                let command: serde_json::Value = serde_json::from_str(&command).unwrap();
                let answer = answer.replace("$id", &command["id"].to_string());
                writer.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
            }
            commands.next_line().await.ok();
        });
        Qmp::start(near)
    }

    #[tokio::test]
    async fn an_answer_finds_its_command() {
        let qmp = monitor(&[
            r#"{"return":{"wrong":1},"id":99}
{"event":"GUEST_PANICKED","timestamp":{}}
{"return":{"n":1},"id":$id}"#,
            r#"{"error":{"class":"GenericError","desc":"not now"},"id":$id}"#,
        ]);
        let mut events = qmp.events();
        assert_eq!(qmp.execute("first", SOON).await.unwrap(), json!({"n": 1}));
        assert_eq!(events.recv().await.unwrap(), Event::GuestPanicked);
        let refused = qmp.execute("second", SOON).await.unwrap_err();
        assert_eq!(refused.to_string(), "GenericError: not now");
    }

    #[tokio::test]
    async fn a_closed_monitor_fails_open_and_later_commands() {
        let (near, far) = UnixStream::pair().unwrap();
        let qmp = Qmp::start(near);
        let open = tokio::spawn({
            let qmp = qmp.clone();
            async move { qmp.execute("stop", SOON).await }
        });
        tokio::task::yield_now().await;
        drop(far);
        assert!(matches!(open.await.unwrap(), Err(QmpError::Closed)));
        assert!(matches!(qmp.execute("cont", SOON).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_silent_monitor_meets_the_deadline() {
        let (near, _far) = UnixStream::pair().unwrap();
        let deadline = Duration::from_millis(10);
        let result = Qmp::start(near).execute("stop", deadline).await;
        assert!(matches!(result, Err(QmpError::Deadline(_))));
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let qmp = Qmp::start(near);
        let flood = tokio::spawn(async move {
            let block = vec![b'x'; 64 * 1024];
            for _ in 0..=(LINE / block.len() + 1) {
                if far.write_all(&block).await.is_err() {
                    return;
                }
            }
        });
        assert!(matches!(qmp.execute("stop", SOON).await, Err(QmpError::Closed)));
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn a_malformed_line_ends_the_connection() {
        let qmp = monitor(&["not json"]);
        assert!(matches!(qmp.execute("stop", SOON).await, Err(QmpError::Closed)));
    }
}
