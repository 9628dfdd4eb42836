//! The few rtnetlink messages that the agent sends (rtnetlink(7)), as bytes.

use std::net::IpAddr;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;

pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_NAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Duplicates were ruled out by who gave the address; detection would keep it unusable for a second.
const IFA_F_NODAD: u8 = 2;

const RTA_DESTINATION: u16 = 1;
const RTA_LINK: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFERRED_SOURCE: u16 = 7;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const TYPE_UNICAST: u8 = 1;
const FLAG_ON_LINK: u32 = 4;

const NDA_DESTINATION: u16 = 1;
const NDA_HARDWARE_ADDRESS: u16 = 2;
const STATE_PERMANENT: u16 = 0x80;

/// Bytes before a message's own header: length, type, flags, sequence number, port.
pub const HEADER: usize = 16;

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        // No attribute of ours is longer than a name.
        let length = (4 + payload.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// An address with the length of its network part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// Asks for all links.
pub fn list_links() -> Vec<u8> {
    Message::new(GET_LINK, DUMP, &[0; 16]).finish()
}

/// Changes a link.
pub struct LinkMessage {
    pub index: u32,
    pub name: Option<String>,
    pub mtu: Option<u32>,
    pub up: bool,
}

impl LinkMessage {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        let state = if self.up { IFF_UP } else { 0 };
        body[8..12].copy_from_slice(&state.to_ne_bytes());
        body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
        let mut message = Message::new(NEW_LINK, ACKNOWLEDGE, &body);
        if let Some(name) = &self.name {
            message = message.attribute(IFLA_NAME, &[name.as_bytes(), &[0]].concat());
        }
        if let Some(mtu) = self.mtu {
            message = message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        message.finish()
    }
}

/// Gives a link an address.
pub struct AddressMessage {
    pub prefix: Prefix,
    pub link: u32,
}

impl AddressMessage {
    pub fn encode(&self) -> Vec<u8> {
        let Prefix { address, length } = self.prefix;
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        let mut body = vec![family(address), length, flags, 0];
        body.extend_from_slice(&self.link.to_ne_bytes());
        let mut message = Message::new(NEW_ADDRESS, ACKNOWLEDGE | CREATE | REPLACE, &body)
            .attribute(IFA_LOCAL, &octets(address))
            .attribute(IFA_ADDRESS, &octets(address));
        if let (IpAddr::V4(address), 0..31) = (address, length) {
            let hosts = u32::MAX >> length;
            message = message.attribute(IFA_BROADCAST, &(address.to_bits() | hosts).to_be_bytes());
        }
        message.finish()
    }
}

/// Adds a route to the main table.
pub struct RouteMessage {
    pub destination: Prefix,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub link: Option<u32>,
    pub scope: u8,
    pub metric: Option<u32>,
    pub on_link: bool,
}

impl RouteMessage {
    pub fn encode(&self) -> Vec<u8> {
        let Prefix { address, length } = self.destination;
        let mut body = vec![family(address), length, 0, 0];
        body.extend_from_slice(&[TABLE_MAIN, PROTOCOL_BOOT, self.scope, TYPE_UNICAST]);
        let flags = if self.on_link { FLAG_ON_LINK } else { 0 };
        body.extend_from_slice(&flags.to_ne_bytes());
        // Replace: the kernel has made some itself, from the addresses.
        let mut message = Message::new(NEW_ROUTE, ACKNOWLEDGE | CREATE | REPLACE, &body);
        if length != 0 {
            message = message.attribute(RTA_DESTINATION, &octets(address));
        }
        if let Some(gateway) = self.gateway {
            message = message.attribute(RTA_GATEWAY, &octets(gateway));
        }
        if let Some(source) = self.source {
            message = message.attribute(RTA_PREFERRED_SOURCE, &octets(source));
        }
        if let Some(link) = self.link {
            message = message.attribute(RTA_LINK, &link.to_ne_bytes());
        }
        if let Some(metric) = self.metric {
            message = message.attribute(RTA_PRIORITY, &metric.to_ne_bytes());
        }
        message.finish()
    }
}

/// Adds a neighbour for good.
pub struct NeighbourMessage {
    pub address: IpAddr,
    pub hardware_address: Vec<u8>,
    pub link: u32,
}

impl NeighbourMessage {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![family(self.address), 0, 0, 0];
        body.extend_from_slice(&self.link.to_ne_bytes());
        body.extend_from_slice(&STATE_PERMANENT.to_ne_bytes());
        body.extend_from_slice(&[0, 0]);
        Message::new(NEW_NEIGHBOUR, ACKNOWLEDGE | CREATE | REPLACE, &body)
            .attribute(NDA_DESTINATION, &octets(self.address))
            .attribute(NDA_HARDWARE_ADDRESS, &self.hardware_address)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{AddressMessage, LinkMessage, Prefix, RouteMessage};

    #[test]
    fn a_link_message_is_as_iproute2_sends_it() {
        let message =
            LinkMessage { index: 2, name: Some("eth0".into()), mtu: Some(1400), up: true };
        let expected = [
            [48, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
            // "eth0" with its NUL, padded; then 1400.
            [9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, 8, 0, 4, 0],
        ]
        .concat();
        let encoded = message.encode();
        assert_eq!(&encoded[4..48], &expected[4..]);
        assert_eq!(&encoded[48..], 1400_u32.to_ne_bytes());
        assert_eq!(
            usize::try_from(u32::from_ne_bytes(encoded[..4].try_into().unwrap())),
            Ok(encoded.len())
        );
    }

    #[test]
    fn an_ipv4_address_has_its_broadcast_and_an_ipv6_one_no_detection() {
        let prefix = |address: &str, length| Prefix { address: address.parse().unwrap(), length };
        let encoded = AddressMessage { prefix: prefix("10.1.2.3", 24), link: 2 }.encode();
        assert_eq!(&encoded[16..24], [2, 24, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&encoded[40..48], [8, 0, 4, 0, 10, 1, 2, 255]);
        let encoded = AddressMessage { prefix: prefix("fd00::2", 64), link: 2 }.encode();
        assert_eq!(&encoded[16..20], [10, 64, 2, 0]);
        let encoded = AddressMessage { prefix: prefix("10.1.2.3", 32), link: 2 }.encode();
        assert_eq!(encoded.len(), 40);
    }

    #[test]
    fn a_default_route_names_no_destination() {
        let message = RouteMessage {
            destination: Prefix { address: "0.0.0.0".parse().unwrap(), length: 0 },
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: None,
            link: Some(3),
            scope: 0,
            metric: None,
            on_link: true,
        };
        let encoded = message.encode();
        assert_eq!(&encoded[16..28], [2, 0, 0, 0, 254, 3, 0, 1, 4, 0, 0, 0]);
        assert_eq!(&encoded[28..], [8, 0, 5, 0, 10, 0, 0, 1, 8, 0, 4, 0, 3, 0, 0, 0]);
    }
}
