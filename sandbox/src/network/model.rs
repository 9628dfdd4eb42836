//! What a network namespace holds: links, addresses, routes, rules, neighbours.
//!
//! A [`Model`] is fed rtnetlink's messages. Those of a dump and those of events are the same, so there is one way in.
//! Some things the kernel does without a word, and the model does them too: with a link that goes down and with its last
//! address IPv4 routes go, but for those that have a way left, and with any address those that come from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{
    parse,
    routes::{Hop, Place, Routes},
    rule::{self, Rule},
};

/// Links that stand on each other, as in the kernel (MAX_NEST_DEV); tunnels may name each other in a circle.
const MOST_STACKED: u8 = 8;

/// How a link's frames could get into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Passage {
    /// Its frames are Ethernet's, as the guest's are.
    Frames,
    /// They are, and without addresses (netkit in its mode L3), which no card of a guest can be: they get the card's.
    Unaddressed,
    /// It has packets, to which the guest's link adds a header of Ethernet's.
    Packets,
    /// Not at all, and nobody expects it: loopback, a card, a port of another link, what the kernel puts everywhere.
    None,
    /// Not at all, for this reason.
    Refused(String),
}

impl Passage {
    /// Whether there is one at all.
    pub fn is_one(&self) -> bool {
        matches!(self, Self::Frames | Self::Unaddressed | Self::Packets)
    }
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub up: bool,
    pub no_arp: bool,
    pub no_ipv6: bool,
    pub loopback: bool,
    /// `veth`, or what else it is.
    pub kind: String,
    pub passage: Passage,
    /// The link that it stands on, if that is in the same namespace.
    pub lower: Option<u32>,
    /// The link that it is a port of.
    pub master: Option<u32>,
}

/// An address with the length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    pub fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(address)) => {
                (ours.to_bits() ^ address.to_bits()).leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(address)) => {
                (ours.to_bits() ^ address.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= u32::from(self.length)
    }
}

/// A permanent neighbour, but for its hardware address.
pub(super) type NeighbourKey = (u32, IpAddr);

/// A namespace's contents. Links are named by their index.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub links: BTreeMap<u32, Link>,
    /// In their order, which decides on the address that a connection comes from.
    pub addresses: Vec<(u32, Prefix)>,
    pub routes: Routes,
    /// Which table a packet goes by.
    pub rules: BTreeSet<Rule>,
    pub neighbours: BTreeMap<NeighbourKey, [u8; 6]>,
}

impl Model {
    /// Takes a message in; `place` is for a route.
    pub fn apply(&mut self, message: &RouteNetlinkMessage, place: Place) {
        match message {
            // Of bridges and of IPv6 there are messages of the same kind that say something else.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
                if link.header.interface_family != AddressFamily::Unspec => {}
            RouteNetlinkMessage::NewLink(link) => {
                self.set_link(link.header.index, parse::link(link))
            }
            RouteNetlinkMessage::DelLink(link) => self.remove_link(link.header.index),
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(row) = parse::address(message)
                    && !self.addresses.contains(&row)
                {
                    self.addresses.push(row);
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some(row) = parse::address_of_any_age(message) {
                    self.remove_address(row);
                }
            }
            RouteNetlinkMessage::NewRoute(message) => {
                if let Some(route) = parse::route(message) {
                    self.routes.add(route, place);
                }
            }
            RouteNetlinkMessage::DelRoute(message) => {
                if let Some(route) = parse::route(message) {
                    self.routes.remove(&route);
                }
            }
            RouteNetlinkMessage::NewRule(message) => self.rules.extend(rule::parse(message)),
            RouteNetlinkMessage::DelRule(message) => {
                if let Some(rule) = rule::parse(message) {
                    self.rules.remove(&rule);
                }
            }
            RouteNetlinkMessage::NewNeighbour(message) => match parse::neighbour(message) {
                Some((key, Some(mac))) => drop(self.neighbours.insert(key, mac)),
                Some((key, None)) => drop(self.neighbours.remove(&key)),
                None => {}
            },
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some((key, _)) = parse::neighbour(message) {
                    self.neighbours.remove(&key);
                }
            }
            _ => {}
        }
    }

    fn set_link(&mut self, index: u32, link: Link) {
        let down = !link.up;
        self.links.insert(index, link);
        // Also of one that was read as down already: an older event may have brought a route since.
        if down {
            self.strand(index);
        }
    }

    /// IPv4 leaves a link: routes go that have no way by another one.
    fn strand(&mut self, index: u32) {
        let (links, addresses) = (&self.links, &self.addresses);
        let serves = |hop: &Hop| {
            let has =
                |(link, prefix): &(u32, Prefix)| *link == hop.link && prefix.address.is_ipv4();
            links.get(&hop.link).is_some_and(|link| link.up) && addresses.iter().any(has)
        };
        self.routes
            .retain(|route| route.is_ipv6() || !route.uses(index) || route.hops.iter().any(serves));
    }

    fn remove_link(&mut self, index: u32) {
        self.links.remove(&index);
        self.addresses.retain(|(link, _)| *link != index);
        // Of IPv6 only the way by that link goes.
        self.routes.retain(|route| match route.is_ipv6() {
            true => route.narrow(|hop| hop.link != index),
            false => !route.uses(index),
        });
        self.neighbours.retain(|(link, _), _| *link != index);
    }

    fn remove_address(&mut self, row: (u32, Prefix)) {
        self.addresses.retain(|other| *other != row);
        let address = row.1.address;
        if address.is_ipv4() && self.addresses.iter().all(|(_, other)| other.address != address) {
            self.routes.retain(|route| route.source != Some(address));
        }
        let of_ipv4 = |(link, prefix): &(u32, Prefix)| *link == row.0 && prefix.address.is_ipv4();
        if address.is_ipv4() && !self.addresses.iter().any(of_ipv4) {
            self.strand(row.0);
        }
    }

    /// How a link's frames get into a guest, its neighbours considered.
    pub fn passage(&self, link: &Link) -> Passage {
        self.passage_above(link, MOST_STACKED)
    }

    fn passage_above(&self, link: &Link, stacked: u8) -> Passage {
        if let Some(master) = link.master.filter(|_| link.passage != Passage::None) {
            return match self.links.get(&master) {
                Some(vrf) if vrf.kind == parse::VRF => Passage::Refused(format!(
                    "it is a port of {}, a VRF, which no guest gets",
                    vrf.name
                )),
                // Its frames are that one's.
                _ => Passage::None,
            };
        }
        let lower = link.lower.filter(|_| link.passage.is_one());
        let lower = lower.and_then(|lower| self.links.get(&lower)).zip(stacked.checked_sub(1));
        match lower {
            Some((lower, stacked)) if self.passage_above(lower, stacked).is_one() => {
                Passage::Refused(format!(
                    "it stands on {}, whose frames go to the guest already",
                    lower.name
                ))
            }
            _ => link.passage.clone(),
        }
    }
}

#[cfg(test)]
impl Link {
    /// One for tests: one end of a pair, up.
    pub(super) fn veth(name: &str) -> Self {
        Self {
            name: name.into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            no_arp: false,
            no_ipv6: false,
            loopback: false,
            kind: "veth".into(),
            passage: Passage::Frames,
            lower: None,
            master: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rtnetlink::{
        LinkUnspec, RouteMessageBuilder, RouteNextHopBuilder,
        packet_route::{
            AddressFamily, RouteNetlinkMessage,
            address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
            link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
            route::RouteAttribute,
        },
    };

    use super::{Model, Passage, Place};

    fn link(index: u32, name: &str, up: bool) -> LinkMessage {
        let mut message = LinkUnspec::new_with_index(index).build();
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message.attributes.push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]));
        message
    }

    fn address(index: u32, text: &str) -> AddressMessage {
        let address: IpAddr = text.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.family =
            if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = 24;
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::Permanent;
        message.attributes.push(AddressAttribute::Address(address));
        message
    }

    fn route(gateway: [u8; 4], metric: u32) -> rtnetlink::packet_route::route::RouteMessage {
        RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix([10, 0, 0, 0].into(), 8)
            .gateway(gateway.into())
            .output_interface(2)
            .priority(metric)
            .build()
    }

    fn fed(messages: impl IntoIterator<Item = RouteNetlinkMessage>) -> Model {
        let mut model = Model::default();
        for message in messages {
            model.apply(&message, Place::Last);
        }
        model
    }

    fn example() -> Model {
        fed([
            RouteNetlinkMessage::NewLink(link(2, "eth0", true)),
            RouteNetlinkMessage::NewAddress(address(2, "192.0.2.2")),
            RouteNetlinkMessage::NewAddress(address(2, "2001:db8::2")),
            RouteNetlinkMessage::NewRoute(route([192, 0, 2, 1], 0)),
        ])
    }

    #[test]
    fn with_a_link_goes_what_hangs_on_it() {
        let mut model = example();
        model.apply(&RouteNetlinkMessage::DelLink(link(2, "eth0", true)), Place::First);
        assert!(
            model.links.is_empty()
                && model.addresses.is_empty()
                && model.routes.iter().next().is_none()
        );
    }

    #[test]
    fn a_link_that_goes_down_loses_ipv4_routes_without_a_word() {
        let mut model = example();
        model.apply(&RouteNetlinkMessage::NewLink(link(2, "eth0", false)), Place::First);
        assert_eq!((model.routes.iter().count(), model.addresses.len()), (0, 2));
        // Both are told once more, when they were read after they had happened.
        model.apply(&RouteNetlinkMessage::NewRoute(route([192, 0, 2, 1], 0)), Place::First);
        model.apply(&RouteNetlinkMessage::NewLink(link(2, "eth0", false)), Place::First);
        assert!(model.routes.iter().next().is_none());
    }

    /// Two links, and a route by both of them.
    fn forked(gateways: [&str; 2]) -> Model {
        let gateways: [IpAddr; 2] = gateways.map(|gateway| gateway.parse().unwrap());
        let ways = gateways.iter().zip(2..).map(|(gateway, link)| {
            let family = if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            RouteNextHopBuilder::new(family).interface(link).via(*gateway).unwrap().build()
        });
        let mut forked = route([192, 0, 2, 1], 0);
        if gateways[0].is_ipv6() {
            forked.header.address_family = AddressFamily::Inet6;
            forked.header.destination_prefix_length = 0;
        }
        forked.attributes = vec![RouteAttribute::MultiPath(ways.collect())];
        fed([
            RouteNetlinkMessage::NewLink(link(2, "eth0", true)),
            RouteNetlinkMessage::NewLink(link(3, "net1", true)),
            RouteNetlinkMessage::NewAddress(address(2, "192.0.2.2")),
            RouteNetlinkMessage::NewAddress(address(3, "198.51.100.2")),
            RouteNetlinkMessage::NewRoute(forked),
        ])
    }

    fn ways(model: &Model) -> Vec<usize> {
        model.routes.iter().map(|route| route.hops.len()).collect()
    }

    #[test]
    fn a_route_by_several_links_goes_when_none_serves_or_one_is_gone() {
        let mut model = forked(["192.0.2.1", "198.51.100.1"]);
        let down = |index, name| RouteNetlinkMessage::NewLink(link(index, name, false));
        model.apply(&down(2, "eth0"), Place::First);
        assert_eq!(ways(&model), [2]);
        let without = RouteNetlinkMessage::DelAddress(address(3, "198.51.100.2"));
        model.apply(&without, Place::First);
        assert!(ways(&model).is_empty(), "none of the links has both");
        let mut model = forked(["192.0.2.1", "198.51.100.1"]);
        model.apply(&RouteNetlinkMessage::DelLink(link(3, "net1", false)), Place::First);
        assert!(ways(&model).is_empty());
    }

    #[test]
    fn with_a_link_an_ipv6_route_loses_one_of_its_ways() {
        let mut model = forked(["fe80::1", "fe80::1"]);
        model.apply(&RouteNetlinkMessage::DelLink(link(3, "net1", false)), Place::First);
        assert_eq!(ways(&model), [1]);
    }

    #[test]
    fn with_the_last_ipv4_address_a_link_loses_ipv4_routes_without_a_word() {
        let mut model = example();
        model.apply(&RouteNetlinkMessage::NewAddress(address(2, "192.0.2.3")), Place::First);
        model.apply(&RouteNetlinkMessage::DelAddress(address(2, "192.0.2.2")), Place::First);
        assert_eq!(model.routes.iter().count(), 1);
        model.apply(&RouteNetlinkMessage::DelAddress(address(2, "192.0.2.3")), Place::First);
        assert_eq!(model.routes.iter().count(), 0);
    }

    #[test]
    fn what_a_bridge_says_of_its_port_is_not_the_end_of_the_link() {
        let mut model = example();
        let mut message = link(2, "eth0", true);
        message.header.interface_family = AddressFamily::Bridge;
        model.apply(&RouteNetlinkMessage::DelLink(message), Place::First);
        assert_eq!(model.links.len(), 1);
    }

    #[test]
    fn a_route_that_replaces_takes_the_place_of_its_like() {
        let mut model = example();
        model.apply(&RouteNetlinkMessage::NewRoute(route([192, 0, 2, 9], 0)), Place::Instead);
        assert_eq!(model.routes.iter().count(), 1);
        model.apply(&RouteNetlinkMessage::NewRoute(route([192, 0, 2, 9], 7)), Place::Instead);
        assert_eq!(model.routes.iter().count(), 2, "another metric is another route");
        model.apply(&RouteNetlinkMessage::DelRoute(route([192, 0, 2, 9], 7)), Place::First);
        assert_eq!(model.routes.iter().count(), 1);
    }

    #[test]
    fn taking_the_same_in_twice_changes_nothing() {
        let (once, mut twice) = (example(), example());
        twice.apply(&RouteNetlinkMessage::NewAddress(address(2, "192.0.2.2")), Place::First);
        twice.apply(&RouteNetlinkMessage::NewRoute(route([192, 0, 2, 1], 0)), Place::First);
        assert_eq!((once.addresses, once.routes), (twice.addresses, twice.routes));
    }

    #[test]
    fn a_function_of_a_pci_device_is_refused_with_its_address() {
        let mut message = link(2, "eth0", true);
        message.attributes.push(LinkAttribute::ParentDevName("0000:3b:02.1".into()));
        let model = fed([RouteNetlinkMessage::NewLink(message)]);
        let Passage::Refused(why) = model.passage(&model.links[&2]) else { panic!("passed") };
        assert!(why.contains("0000:3b:02.1") && why.contains("VFIO"), "{why}");
    }

    #[test]
    fn a_tap_of_any_sandbox_is_no_link_and_one_of_the_same_name_is() {
        let named = link(2, "kata0", true);
        let mut card = link(3, "kata1", true);
        card.attributes.push(LinkAttribute::IfAlias(super::parse::CARD_ALIAS.into()));
        let model = fed([named, card].map(RouteNetlinkMessage::NewLink));
        assert_eq!(model.passage(&model.links[&2]), Passage::Frames);
        assert_eq!(model.passage(&model.links[&3]), Passage::None);
    }

    #[test]
    fn a_port_comes_with_its_bridge_and_is_refused_with_its_vrf() {
        for (kind, refused) in [(InfoKind::Bridge, false), (InfoKind::Vrf, true)] {
            let mut master = link(3, "above", true);
            master.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            let mut port = link(2, "eth0", true);
            port.attributes.push(LinkAttribute::Controller(3));
            let model = fed([port, master].map(RouteNetlinkMessage::NewLink));
            let passages = [2, 3].map(|index| model.passage(&model.links[&index]));
            match (refused, passages) {
                (false, [Passage::None, Passage::Frames]) => {}
                (true, [Passage::Refused(port), Passage::Refused(vrf)]) => {
                    assert!(port.contains("above, a VRF") && vrf.contains("VRF"), "{port}, {vrf}");
                }
                (_, passages) => panic!("{passages:?}"),
            }
        }
    }

    #[test]
    fn a_link_on_another_one_is_not_passed_twice() {
        let mut model = example();
        let mut upper = link(3, "eth0.7", true);
        upper.attributes.push(LinkAttribute::Link(2));
        model.apply(&RouteNetlinkMessage::NewLink(upper), Place::First);
        assert!(matches!(model.passage(&model.links[&3]), Passage::Refused(_)));
        assert_eq!(model.passage(&model.links[&2]), Passage::Frames);
    }

    #[test]
    fn a_link_on_one_that_is_not_passed_is_passed_itself() {
        for attribute in [
            LinkAttribute::ParentDevName("0000:3b:02.1".into()),
            // A port's frames are its bridge's, but those of its VLANs are not.
            LinkAttribute::Controller(9),
        ] {
            let (mut lower, mut upper, mut top) =
                (link(2, "eth0", true), link(3, "eth0.7", true), link(4, "eth0.7.8", true));
            lower.attributes.push(attribute);
            upper.attributes.push(LinkAttribute::Link(2));
            top.attributes.push(LinkAttribute::Link(3));
            let model = fed([lower, upper, top].map(RouteNetlinkMessage::NewLink));
            assert_eq!(model.passage(&model.links[&3]), Passage::Frames);
            assert!(matches!(model.passage(&model.links[&4]), Passage::Refused(_)));
        }
    }

    #[test]
    fn links_that_stand_on_each_other_end_somewhere() {
        let (mut one, mut other) = (link(2, "gre1", true), link(3, "gre2", true));
        one.attributes.push(LinkAttribute::Link(3));
        other.attributes.push(LinkAttribute::Link(2));
        let model = fed([one, other].map(RouteNetlinkMessage::NewLink));
        assert!(model.passage(&model.links[&2]).is_one());
    }
}
