//! The few rtnetlink messages that the agent sends (rtnetlink(7)), as bytes.

use std::{net::IpAddr, os::fd::RawFd};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x300;

pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_NAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
/// The address that a device was made with, whatever it has been given since.
pub const IFLA_PERMANENT_ADDRESS: u16 = 54;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// Duplicates were ruled out by who gave the address; detection would keep it unusable for a second.
const IFA_F_NODAD: u32 = 2;
/// The host names the routes that there shall be, those of its own kernel among them.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const SCOPE_LINK: u8 = 253;

const RTA_DESTINATION: u16 = 1;
const RTA_LINK: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFERRED_SOURCE: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const TABLE_UNSPECIFIED: u8 = 0;
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
        // None of ours is as long as 64 KiB, which the ways of a route are bounded for.
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

/// Changes a link; what is `None` stays as it is.
#[derive(Default)]
pub struct LinkMessage {
    pub index: u32,
    pub name: Option<String>,
    pub mtu: Option<u32>,
    pub hardware_address: Option<Vec<u8>>,
    pub up: Option<bool>,
    pub no_arp: Option<bool>,
    /// The link makes up no IPv6 address for itself.
    pub no_generation: bool,
    /// It moves there; a descriptor.
    pub namespace: Option<RawFd>,
}

impl LinkMessage {
    pub fn of(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        let (mut flags, mut changed) = (0, 0);
        for (wanted, flag) in [(self.up, IFF_UP), (self.no_arp, IFF_NOARP)] {
            if let Some(wanted) = wanted {
                changed |= flag;
                flags |= if wanted { flag } else { 0 };
            }
        }
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        body[12..16].copy_from_slice(&changed.to_ne_bytes());
        let mut message = Message::new(NEW_LINK, ACKNOWLEDGE, &body);
        if let Some(address) = &self.hardware_address {
            message = message.attribute(IFLA_ADDRESS, address);
        }
        if let Some(name) = &self.name {
            message = message.attribute(IFLA_NAME, &[name.as_bytes(), &[0]].concat());
        }
        if let Some(mtu) = self.mtu {
            message = message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        if self.no_generation {
            let mode = nested(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
            message = message.attribute(IFLA_AF_SPEC, &nested(AF_INET6, &mode));
        }
        if let Some(namespace) = self.namespace {
            message = message.attribute(IFLA_NET_NS_FD, &namespace.to_ne_bytes());
        }
        message.finish()
    }
}

/// An attribute as the payload of another one.
fn nested(kind: u16, payload: &[u8]) -> Vec<u8> {
    let message = Message(Vec::new()).attribute(kind, payload);
    message.0
}

/// Gives a link an address, or takes it.
pub struct AddressMessage {
    pub prefix: Prefix,
    pub link: u32,
}

impl AddressMessage {
    pub fn encode(&self) -> Vec<u8> {
        let Prefix { address, length } = self.prefix;
        let mut flags = IFA_F_NOPREFIXROUTE;
        if address.is_ipv6() {
            flags |= IFA_F_NODAD;
        }
        let mut message = self
            .begin(NEW_ADDRESS, ACKNOWLEDGE | CREATE | REPLACE)
            .attribute(IFA_FLAGS, &flags.to_ne_bytes());
        if let (IpAddr::V4(address), 0..31) = (address, length) {
            let hosts = u32::MAX >> length;
            message = message.attribute(IFA_BROADCAST, &(address.to_bits() | hosts).to_be_bytes());
        }
        message.finish()
    }

    pub fn encode_removal(&self) -> Vec<u8> {
        self.begin(DELETE_ADDRESS, ACKNOWLEDGE).finish()
    }

    fn begin(&self, kind: u16, flags: u16) -> Message {
        let Prefix { address, length } = self.prefix;
        let scope = match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => SCOPE_LINK,
            _ => 0,
        };
        let mut body = vec![family(address), length, 0, scope];
        body.extend_from_slice(&self.link.to_ne_bytes());
        Message::new(kind, flags, &body)
            .attribute(IFA_LOCAL, &octets(address))
            .attribute(IFA_ADDRESS, &octets(address))
    }
}

/// Adds a rule, which is a header and attributes already; the same one a second time is an error.
pub fn add_rule(rule: &[u8]) -> Vec<u8> {
    Message::new(NEW_RULE, ACKNOWLEDGE | CREATE | EXCLUSIVE, rule).finish()
}

/// Removes a rule.
pub fn remove_rule(rule: &[u8]) -> Vec<u8> {
    Message::new(DELETE_RULE, ACKNOWLEDGE, rule).finish()
}

/// Most ways that a route may lead: all are in one attribute, in at most 32 bytes each.
pub const MOST_HOPS: usize = 2000;

/// One way that a route leads.
pub struct Hop {
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub weight: u8,
    pub on_link: bool,
}

/// A route; without a hop it leads nowhere.
pub struct RouteMessage {
    pub destination: Prefix,
    pub hops: Vec<Hop>,
    pub source: Option<IpAddr>,
    pub scope: u8,
    pub kind: u8,
    pub protocol: u8,
    pub tos: u8,
    pub metric: u32,
    pub table: u32,
    pub mtu: u32,
}

impl RouteMessage {
    pub fn encode(&self) -> Vec<u8> {
        // There may be several that differ in nothing but where they lead to: the link-local network is on each link. Of
        // IPv6's those with gateways are one for the kernel, whose ways are those of the last word on it.
        let merged = self.destination.address.is_ipv6()
            && (self.hops.len() > 1 || self.hops.iter().any(|hop| hop.gateway.is_some()));
        self.finish(NEW_ROUTE, ACKNOWLEDGE | CREATE | if merged { REPLACE } else { APPEND })
    }

    pub fn encode_removal(&self) -> Vec<u8> {
        self.finish(DELETE_ROUTE, ACKNOWLEDGE)
    }

    fn finish(&self, what: u16, flags: u16) -> Vec<u8> {
        let Prefix { address, length } = self.destination;
        let table = u8::try_from(self.table).unwrap_or(TABLE_UNSPECIFIED);
        let mut body = vec![family(address), length, 0, self.tos];
        body.extend_from_slice(&[table, self.protocol, self.scope, self.kind]);
        let on_link = matches!(&self.hops[..], [hop] if hop.on_link);
        let route_flags = if on_link { FLAG_ON_LINK } else { 0_u32 };
        body.extend_from_slice(&route_flags.to_ne_bytes());
        let mut message = Message::new(what, flags, &body);
        if length != 0 {
            message = message.attribute(RTA_DESTINATION, &octets(address));
        }
        message = message.attribute(RTA_TABLE, &self.table.to_ne_bytes());
        if let Some(source) = self.source {
            message = message.attribute(RTA_PREFERRED_SOURCE, &octets(source));
        }
        if self.metric != 0 {
            message = message.attribute(RTA_PRIORITY, &self.metric.to_ne_bytes());
        }
        if self.mtu != 0 {
            message = message.attribute(RTA_METRICS, &nested(RTAX_MTU, &self.mtu.to_ne_bytes()));
        }
        match &self.hops[..] {
            [] => {}
            [hop] => {
                message = message.attribute(RTA_LINK, &hop.link.to_ne_bytes());
                if let Some((kind, payload)) = hop.gateway_attribute(address) {
                    message = message.attribute(kind, &payload);
                }
            }
            hops => {
                let hops: Vec<u8> = hops.iter().flat_map(|hop| hop.encode(address)).collect();
                message = message.attribute(RTA_MULTIPATH, &hops);
            }
        }
        message.finish()
    }
}

impl Hop {
    /// A gateway of the other family is said in another way.
    fn gateway_attribute(&self, destination: IpAddr) -> Option<(u16, Vec<u8>)> {
        let gateway = self.gateway?;
        if gateway.is_ipv4() == destination.is_ipv4() {
            return Some((RTA_GATEWAY, octets(gateway)));
        }
        let family = u16::from(family(gateway)).to_ne_bytes();
        Some((RTA_VIA, [&family[..], &octets(gateway)].concat()))
    }

    /// `struct rtnexthop`.
    fn encode(&self, destination: IpAddr) -> Vec<u8> {
        let gateway = self.gateway_attribute(destination);
        let gateway = gateway.map(|(kind, payload)| nested(kind, &payload)).unwrap_or_default();
        // Eight bytes and an address.
        let length = (8 + gateway.len()) as u16;
        let flags = if self.on_link { FLAG_ON_LINK as u8 } else { 0 };
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[flags, self.weight]);
        bytes.extend_from_slice(&self.link.to_ne_bytes());
        bytes.extend_from_slice(&gateway);
        bytes
    }
}

/// Adds a neighbour for good, or takes it away.
pub struct NeighbourMessage {
    pub address: IpAddr,
    pub hardware_address: Vec<u8>,
    pub link: u32,
}

impl NeighbourMessage {
    pub fn encode(&self) -> Vec<u8> {
        self.begin(NEW_NEIGHBOUR, ACKNOWLEDGE | CREATE | REPLACE)
            .attribute(NDA_HARDWARE_ADDRESS, &self.hardware_address)
            .finish()
    }

    pub fn encode_removal(&self) -> Vec<u8> {
        self.begin(DELETE_NEIGHBOUR, ACKNOWLEDGE).finish()
    }

    fn begin(&self, kind: u16, flags: u16) -> Message {
        let mut body = vec![family(self.address), 0, 0, 0];
        body.extend_from_slice(&self.link.to_ne_bytes());
        body.extend_from_slice(&STATE_PERMANENT.to_ne_bytes());
        body.extend_from_slice(&[0, 0]);
        Message::new(kind, flags, &body).attribute(NDA_DESTINATION, &octets(self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        APPEND, AddressMessage, Hop, LinkMessage, MOST_HOPS, Prefix, REPLACE, RouteMessage,
    };

    #[test]
    fn a_link_message_is_as_iproute2_sends_it() {
        let message = LinkMessage {
            name: Some("eth0".into()),
            mtu: Some(1400),
            up: Some(true),
            ..LinkMessage::of(2)
        };
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
        assert_eq!(&encoded[40..48], [8, 0, 8, 0, 0, 2, 0, 0]);
        assert_eq!(&encoded[48..56], [8, 0, 4, 0, 10, 1, 2, 255]);
        let encoded = AddressMessage { prefix: prefix("fd00::2", 64), link: 2 }.encode();
        assert_eq!(&encoded[16..20], [10, 64, 0, 0]);
        assert_eq!(&encoded[encoded.len() - 8..], [8, 0, 8, 0, 2, 2, 0, 0]);
        let encoded = AddressMessage { prefix: prefix("fe80::2", 64), link: 2 }.encode();
        assert_eq!(&encoded[16..20], [10, 64, 0, 253], "the scope of a link-local one");
    }

    fn default_route(hops: Vec<Hop>) -> RouteMessage {
        RouteMessage {
            destination: Prefix { address: "0.0.0.0".parse().unwrap(), length: 0 },
            hops,
            source: None,
            scope: 0,
            kind: 1,
            protocol: 3,
            tos: 0,
            metric: 0,
            table: 254,
            mtu: 0,
        }
    }

    fn hop(gateway: &str, link: u32) -> Hop {
        Hop { link, gateway: Some(gateway.parse().unwrap()), weight: 0, on_link: true }
    }

    #[test]
    fn a_default_route_names_no_destination() {
        let encoded = default_route(vec![hop("10.0.0.1", 3)]).encode();
        assert_eq!(&encoded[16..28], [2, 0, 0, 0, 254, 3, 0, 1, 4, 0, 0, 0]);
        assert_eq!(&encoded[28..36], [8, 0, 15, 0, 254, 0, 0, 0]);
        assert_eq!(&encoded[36..], [8, 0, 4, 0, 3, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1]);
    }

    #[test]
    fn a_route_of_several_ways_has_them_in_one_attribute() {
        let encoded = default_route(vec![hop("10.0.0.1", 3), hop("10.0.0.2", 4)]).encode();
        assert_eq!(&encoded[36..40], [36, 0, 9, 0]);
        assert_eq!(&encoded[40..56], [16, 0, 4, 0, 3, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1]);
        assert_eq!(encoded.len(), 72);
    }

    #[test]
    fn as_many_ways_as_there_may_be_fit_into_one_attribute() {
        let longest = default_route((0..MOST_HOPS).map(|_| hop("fe80::1", 3)).collect()).encode();
        let length = u16::from_ne_bytes([longest[36], longest[37]]);
        assert_eq!(usize::from(length), longest.len() - 36);
    }

    #[test]
    fn only_what_the_kernel_takes_for_one_is_replaced() {
        let all = |text: &str| Prefix { address: text.parse().unwrap(), length: 64 };
        let direct = |link| Hop { gateway: None, ..hop("::", link) };
        let cases = [
            ("fe80::", vec![direct(3)], APPEND),
            ("2001:db8::", vec![], APPEND),
            ("2001:db8::", vec![hop("fe80::1", 3)], REPLACE),
            ("2001:db8::", vec![direct(3), direct(4)], REPLACE),
            ("10.0.0.0", vec![hop("10.0.0.1", 3)], APPEND),
        ];
        for (destination, hops, beside) in cases {
            let route = RouteMessage { destination: all(destination), ..default_route(hops) };
            let flags = u16::from_ne_bytes([route.encode()[6], route.encode()[7]]);
            assert_eq!(flags & (APPEND | REPLACE), beside, "{destination}");
        }
    }

    #[test]
    fn a_gateway_of_the_other_family_goes_by_via() {
        let encoded = default_route(vec![hop("fe80::1", 3)]).encode();
        assert_eq!(&encoded[44..50], [22, 0, 18, 0, 10, 0]);
    }
}
