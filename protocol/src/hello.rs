//! The fixed-size preambles of guest connections.

use thiserror::Error;

use crate::PROTOCOL_VERSION;

/// Secret that the host put on this guest's kernel command line; whoever shows it is the agent.
pub type BootNonce = [u8; 32];

/// One-time secret that pairs a stream connection with the process that it was made for.
pub type StreamToken = [u8; 16];

/// Why a preamble was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HelloError {
    /// Not our magic: something else dialled the port.
    #[error("connection does not begin with the {expected} magic")]
    Magic {
        /// The magic that should have come.
        expected: &'static str,
    },
    /// Guest image and shim are of different builds.
    #[error(
        "agent speaks protocol version {agent}, this shim speaks {shim}: rebuild or reinstall the guest image"
    )]
    Version {
        /// What the agent said.
        agent: u32,
        /// [`PROTOCOL_VERSION`].
        shim: u32,
    },
    /// The stream kind is none of ours.
    #[error("unknown stream kind {0}")]
    Kind(u32),
}

/// First bytes of the agent's connection (port 1024).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentHello {
    /// As found on the kernel command line.
    pub nonce: BootNonce,
}

impl AgentHello {
    /// Bytes on the wire: magic, version, nonce.
    pub const LEN: usize = 40;
    const MAGIC: &'static str = "KATA";

    /// As the agent sends it.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut wire = [0; Self::LEN];
        wire[..4].copy_from_slice(Self::MAGIC.as_bytes());
        wire[4..8].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        wire[8..].copy_from_slice(&self.nonce);
        wire
    }

    /// Checks magic and version; comparing the nonce is left to whoever knows it.
    pub fn decode(wire: &[u8; Self::LEN]) -> Result<Self, HelloError> {
        let (magic, rest) = wire.split_at(4);
        if magic != Self::MAGIC.as_bytes() {
            return Err(HelloError::Magic { expected: Self::MAGIC });
        }
        let agent = little_endian(rest);
        if agent != PROTOCOL_VERSION {
            return Err(HelloError::Version { agent, shim: PROTOCOL_VERSION });
        }
        let mut nonce = BootNonce::default();
        nonce.copy_from_slice(&rest[4..]);
        Ok(Self { nonce })
    }
}

/// Which stream a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum StreamKind {
    /// Host to guest.
    Stdin = 0,
    /// Guest to host.
    Stdout = 1,
    /// Guest to host.
    Stderr = 2,
    /// Both ways.
    Terminal = 3,
    /// Both ways: a connection to the guest's localhost.
    Localhost = 4,
    /// Both ways: questions of names, and their answers.
    Resolver = 5,
}

impl TryFrom<u32> for StreamKind {
    type Error = HelloError;

    fn try_from(value: u32) -> Result<Self, HelloError> {
        const KINDS: [StreamKind; 6] = [
            StreamKind::Stdin,
            StreamKind::Stdout,
            StreamKind::Stderr,
            StreamKind::Terminal,
            StreamKind::Localhost,
            StreamKind::Resolver,
        ];
        KINDS.into_iter().find(|kind| *kind as u32 == value).ok_or(HelloError::Kind(value))
    }
}

/// First bytes of a stream connection (port 1025).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHello {
    /// What the connection carries.
    pub kind: StreamKind,
    /// The token of the request that made the process.
    pub token: StreamToken,
}

impl StreamHello {
    /// Bytes on the wire: magic, kind, token.
    pub const LEN: usize = 24;
    const MAGIC: &'static str = "KSTR";

    /// As the agent sends it.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut wire = [0; Self::LEN];
        wire[..4].copy_from_slice(Self::MAGIC.as_bytes());
        wire[4..8].copy_from_slice(&(self.kind as u32).to_le_bytes());
        wire[8..].copy_from_slice(&self.token);
        wire
    }

    /// Checks magic and kind; matching the token is left to whoever issued it.
    pub fn decode(wire: &[u8; Self::LEN]) -> Result<Self, HelloError> {
        let (magic, rest) = wire.split_at(4);
        if magic != Self::MAGIC.as_bytes() {
            return Err(HelloError::Magic { expected: Self::MAGIC });
        }
        let kind = StreamKind::try_from(little_endian(rest))?;
        let mut token = StreamToken::default();
        token.copy_from_slice(&rest[4..]);
        Ok(Self { kind, token })
    }
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::{AgentHello, HelloError, PROTOCOL_VERSION, StreamHello, StreamKind};

    #[test]
    fn agent_hello_survives_the_wire() {
        let hello = AgentHello { nonce: [7; 32] };
        assert_eq!(AgentHello::decode(&hello.encode()), Ok(hello));
    }

    #[test]
    fn another_version_is_named_in_the_error() {
        let mut wire = AgentHello { nonce: [0; 32] }.encode();
        wire[4] = 9;
        assert_eq!(
            AgentHello::decode(&wire),
            Err(HelloError::Version { agent: 9, shim: PROTOCOL_VERSION })
        );
    }

    #[test]
    fn stream_hello_survives_the_wire_for_every_kind() {
        for kind in [
            StreamKind::Stdin,
            StreamKind::Stdout,
            StreamKind::Stderr,
            StreamKind::Terminal,
            StreamKind::Localhost,
            StreamKind::Resolver,
        ] {
            let hello = StreamHello { kind, token: [3; 16] };
            assert_eq!(StreamHello::decode(&hello.encode()), Ok(hello));
        }
    }

    #[test]
    fn a_foreign_connection_and_an_unknown_kind_are_refused() {
        let wire = *b"GET / HTTP/1.1\r\nHost: a\r";
        assert_eq!(StreamHello::decode(&wire), Err(HelloError::Magic { expected: "KSTR" }));
        let mut wire = StreamHello { kind: StreamKind::Stdin, token: [0; 16] }.encode();
        wire[4] = 9;
        assert_eq!(StreamHello::decode(&wire), Err(HelloError::Kind(9)));
    }
}
