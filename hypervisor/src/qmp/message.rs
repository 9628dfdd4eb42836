//! One line of the protocol.

use serde::Deserialize;
use serde_json::Value;

/// Longer than any id that the driver gives.
const LONGEST_ID: usize = 64;

/// A line that is not the protocol.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not JSON, or not an object.
    #[error("monitor sent malformed JSON")]
    Json(#[source] serde_json::Error),
    /// An object of no known kind.
    #[error("monitor sent a message of no known kind")]
    Unknown,
}

/// Why a VM was shut down, as QEMU's SHUTDOWN event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownReason {
    /// The guest restarted, and `-no-reboot` made that an end.
    GuestReset,
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest reported its panic.
    GuestPanic,
    /// SIGTERM, SIGINT or SIGHUP to QEMU.
    HostSignal,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// An event that the driver acts upon; others are [`Event::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The VM ends.
    Shutdown(ShutdownReason),
    /// pvpanic spoke.
    GuestPanicked,
    /// The guest has let go of a device that was to be removed; its id.
    DeviceDeleted(String),
    /// Any other.
    Other,
}

/// One line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line.
    Greeting,
    /// A command was carried out.
    Return {
        /// Which command.
        id: Option<u64>,
        /// Its result.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// Which command.
        id: Option<u64>,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// Something happened.
    Event(Event),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<Value>,
}

#[derive(Deserialize)]
struct WireError {
    class: String,
    #[serde(rename = "desc")]
    description: String,
}

impl Message {
    /// Parses a line.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(line: &[u8]) -> Result<Self, MessageError> {
        let wire: Wire = serde_json::from_slice(line).map_err(MessageError::Json)?;
        let id = wire.id.as_ref().and_then(Value::as_u64);
        if wire.greeting.is_some() {
            Ok(Self::Greeting)
        } else if let Some(WireError { class, description }) = wire.error {
            Ok(Self::Error { id, class, description })
        } else if let Some(value) = wire.result {
            Ok(Self::Return { id, value })
        } else if let Some(name) = wire.event {
            Ok(Self::Event(event(&name, wire.data.as_ref())))
        } else {
            Err(MessageError::Unknown)
        }
    }
}

fn event(name: &str, data: Option<&Value>) -> Event {
    let reason = || {
        data.and_then(|data| data.get("reason"))
            .and_then(|reason| ShutdownReason::deserialize(reason).ok())
            .unwrap_or(ShutdownReason::Other)
    };
    match name {
        "SHUTDOWN" => Event::Shutdown(reason()),
        "GUEST_PANICKED" => Event::GuestPanicked,
        // There is one for each part of a device; the device itself has an id.
        "DEVICE_DELETED" => match data.and_then(|data| data.get("device")?.as_str()) {
            // Subscribers may be behind by many: a VMM that is not to be trusted fills their memory with nothing.
            Some(id) if id.len() <= LONGEST_ID => Event::DeviceDeleted(id.to_owned()),
            _ => Event::Other,
        },
        _ => Event::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::proptest;
    use serde_json::json;

    use super::{Event, Message, ShutdownReason};

    fn parse(line: &str) -> Message {
        Message::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn each_kind_is_known() {
        assert_eq!(parse(r#"{"QMP":{"version":{},"capabilities":["oob"]}}"#), Message::Greeting);
        let returned = Message::Return { id: Some(7), value: json!({"running": true}) };
        assert_eq!(parse(r#"{"return":{"running":true},"id":7}"#), returned);
        let refused =
            Message::Error { id: None, class: "GenericError".into(), description: "no".into() };
        assert_eq!(parse(r#"{"error":{"class":"GenericError","desc":"no"}}"#), refused);
    }

    #[test]
    fn a_shutdown_has_a_reason() {
        let line = |reason: &str| {
            let data = json!({"guest": true, "reason": reason});
            json!({"event": "SHUTDOWN", "data": data, "timestamp": {"seconds": 1}}).to_string()
        };
        for (text, reason) in [
            ("guest-reset", ShutdownReason::GuestReset),
            ("guest-panic", ShutdownReason::GuestPanic),
            ("something-new", ShutdownReason::Other),
        ] {
            assert_eq!(parse(&line(text)), Message::Event(Event::Shutdown(reason)));
        }
        let bare = Message::Event(Event::Shutdown(ShutdownReason::Other));
        assert_eq!(parse(r#"{"event":"SHUTDOWN"}"#), bare);
    }

    #[test]
    fn a_device_is_told_by_an_id_of_ours() {
        let line = |id: &str| {
            json!({"event": "DEVICE_DELETED", "data": {"device": id, "path": "/"}}).to_string()
        };
        let gone = |line: &str| match parse(line) {
            Message::Event(event) => event,
            other => panic!("{other:?}"),
        };
        assert_eq!(gone(&line("nic3")), Event::DeviceDeleted("nic3".into()));
        assert_eq!(gone(&line(&"x".repeat(65))), Event::Other);
        assert_eq!(gone(r#"{"event":"DEVICE_DELETED","data":{"path":"/"}}"#), Event::Other);
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for line in ["", "{}", "[]", "null", "{\"return\"", r#"{"error":"x"}"#, "\u{0}"] {
            assert!(Message::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_message_or_an_error(line: Vec<u8>) {
            drop(Message::parse(&line));
        }

        #[test]
        fn any_object_is_a_message_or_an_error(key in "(QMP|return|error|event|data|id)", value: String) {
            drop(Message::parse(json!({ key: value }).to_string().as_bytes()));
        }
    }
}
