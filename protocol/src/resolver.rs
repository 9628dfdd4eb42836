//! Questions to a resolver that only the host can reach, and its answers, on one stream.
//!
//! Each is a header and the message as DNS has it (RFC 1035), which neither side reads. The number pairs an answer with its
//! question; a question without an answer is one that nobody knows.

use std::net::{Ipv4Addr, SocketAddrV4};

use thiserror::Error;

/// Where docker has its containers ask, in the guest as in the network namespace.
pub const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);

/// Shorter than any header of DNS: no question, and no answer.
const SHORTEST: u16 = 12;

/// Why what came is no header.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// None of ours.
    #[error("unknown transport {0}")]
    Transport(u8),
    /// No message of DNS.
    #[error("a message of {0} bytes")]
    Length(u16),
}

/// How a question came, and is to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// In a datagram.
    Udp = 0,
    /// On a connection.
    Tcp = 1,
}

/// What precedes each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the guest.
    pub number: u32,
    /// The same for question and answer.
    pub transport: Transport,
    /// Bytes that follow.
    pub length: u16,
}

impl Header {
    /// Bytes on the wire: number, transport, a zero, length.
    pub const LEN: usize = 8;

    /// As it is sent.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [a, b, c, d] = self.number.to_le_bytes();
        let [low, high] = self.length.to_le_bytes();
        [a, b, c, d, self.transport as u8, 0, low, high]
    }

    /// Checks all that it says.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn decode(wire: [u8; Self::LEN]) -> Result<Self, HeaderError> {
        let [a, b, c, d, transport, _, low, high] = wire;
        let transport = match transport {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            other => return Err(HeaderError::Transport(other)),
        };
        let length = u16::from_le_bytes([low, high]);
        if length < SHORTEST {
            return Err(HeaderError::Length(length));
        }
        Ok(Self { number: u32::from_le_bytes([a, b, c, d]), transport, length })
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, HeaderError, Transport};

    #[test]
    fn a_header_survives_the_wire() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let header = Header { number: 0x0102_0304, transport, length: 512 };
            assert_eq!(Header::decode(header.encode()), Ok(header));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let good = Header { number: 1, transport: Transport::Udp, length: 12 }.encode();
        assert!(Header::decode(good).is_ok());
        let mut bad = good;
        bad[6] = 11;
        assert_eq!(Header::decode(bad), Err(HeaderError::Length(11)));
        let mut bad = good;
        bad[4] = 2;
        assert_eq!(Header::decode(bad), Err(HeaderError::Transport(2)));
    }
}
