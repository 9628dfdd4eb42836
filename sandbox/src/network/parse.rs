//! From rtnetlink's messages to the rows of a model.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
    },
};

use super::{
    model::{Link, NeighbourKey, Passage, Prefix},
    routes::{Hop, Route, RouteKey},
};

/// The kernel puts these into every new namespace; they are down and go nowhere.
const FALLBACK: [&str; 9] =
    ["sit0", "ip6tnl0", "tunl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0"];

/// What a tap of ours says of itself, whoever made it: a dead sandbox's stays until its VMM has gone too. A name says nothing.
pub(super) const CARD_ALIAS: &str = "card of a Kata sandbox";

/// Links of IP packets: the kernel's `dev_is_mac_header_xmit` has the same list.
const HEADERLESS: [LinkLayerType; 8] = [
    LinkLayerType::None,
    LinkLayerType::Ppp,
    LinkLayerType::Rawip,
    LinkLayerType::Tunnel,
    LinkLayerType::Tunnel6,
    LinkLayerType::Sit,
    LinkLayerType::Ipgre,
    LinkLayerType::Ip6gre,
];

/// Kinds of links that are made two at a time.
const PAIRS: &[&str] = &["veth", "netkit"];

/// A link that other ones are ports of, and that is no way out of the namespace for them: it chooses their table of routes.
pub(super) const VRF: &str = "vrf";

pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: String::new(),
        mac: [0; 6],
        mtu: 1500,
        up: flags.contains(LinkFlags::Up),
        no_arp: flags.contains(LinkFlags::Noarp),
        no_ipv6: false,
        loopback: flags.contains(LinkFlags::Loopback),
        kind: String::new(),
        passage: Passage::Frames,
        lower: None,
        master: None,
    };
    let (mut device, mut elsewhere, mut card) = (None, false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                link.mac = mac.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            LinkAttribute::Link(lower) => link.lower = Some(*lower),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::IfAlias(alias) => card = alias == CARD_ALIAS,
            LinkAttribute::ParentDevName(name) => device = Some(name.clone()),
            LinkAttribute::AfSpecUnspec(families) => link.no_ipv6 = without_ipv6(families),
            _ => {}
        }
    }
    // The two ends of a pair point at each other, and neither stands on the other.
    if elsewhere || PAIRS.contains(&link.kind.as_str()) || link.lower == Some(message.header.index)
    {
        link.lower = None;
    }
    let nothing = link.loopback || card || FALLBACK.contains(&link.name.as_str());
    link.passage = if nothing {
        Passage::None
    } else if link.kind == VRF {
        Passage::Refused("it is a VRF, which no guest gets".into())
    } else if HEADERLESS.contains(&message.header.link_layer_type) {
        Passage::Packets
    } else if message.header.link_layer_type != LinkLayerType::Ether {
        let kind = if link.kind.is_empty() { "this kind" } else { &link.kind };
        let layer = message.header.link_layer_type;
        Passage::Refused(format!("links of {kind} carry {layer:?}, which a guest has no card for"))
    } else if let Some(device) = device {
        Passage::Refused(format!(
            "it is a device of the host ({device}), which would have to be passed by VFIO; that is not done"
        ))
    } else if link.mac == [0; 6] {
        Passage::Unaddressed
    } else {
        Passage::Frames
    };
    link
}

fn without_ipv6(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(about) => about.iter().any(|one| match one {
            AfSpecInet6::DevConf(conf) => conf.disable_ipv6 != 0,
            _ => false,
        }),
        _ => false,
    })
}

/// An address that somebody gave: what IPv6 makes of a router's word, it makes in the guest too.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, Prefix)> {
    let flags = message.header.flags;
    let row = address_of_any_age(message)?;
    let learnt = row.1.address.is_ipv6() && !flags.contains(AddressHeaderFlags::Permanent);
    (!learnt && !flags.contains(AddressHeaderFlags::Dadfailed)).then_some(row)
}

/// `Local` is the link's own address where the two differ (point to point).
pub(super) fn address_of_any_age(message: &AddressMessage) -> Option<(u32, Prefix)> {
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            _ => {}
        }
    }
    let length = message.header.prefix_len;
    Some((message.header.index, Prefix { address: local.or(any)?, length }))
}

/// A route that decides where packets go: what the kernel itself keeps for local addresses comes with those.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let leads_nowhere = matches!(
        header.kind,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
    );
    let learnt = matches!(header.protocol, RouteProtocol::Ra | RouteProtocol::IcmpRedirect);
    let cached = header.flags.contains(RouteFlags::Cloned);
    if learnt || cached || !(leads_nowhere || header.kind == RouteType::Unicast) {
        return None;
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route {
        key: RouteKey {
            table: header.table.into(),
            destination: Prefix { address: any, length: header.destination_prefix_length },
            tos: header.tos,
            metric: 0,
        },
        hops: Vec::new(),
        kind: header.kind.into(),
        source: None,
        scope: header.scope.into(),
        protocol: header.protocol.into(),
        mtu: 0,
    };
    let on_link = header.flags.contains(RouteFlags::Onlink);
    let mut only = Hop { link: 0, gateway: None, weight: 0, on_link };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.key.destination.address = ip(address)?,
            RouteAttribute::Table(table) => route.key.table = *table,
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.key.metric = *metric,
            RouteAttribute::Oif(link) => only.link = *link,
            RouteAttribute::MultiPath(hops) => route.hops = hops.iter().map(hop).collect(),
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu = mtu.unwrap_or_default();
            }
            other => only.gateway = only.gateway.or(gateway(other)),
        }
    }
    if route.hops.is_empty() && !leads_nowhere {
        route.hops.push(only);
    }
    Some(route)
}

fn hop(next: &RouteNextHop) -> Hop {
    Hop {
        link: next.interface_index,
        gateway: next.attributes.iter().find_map(gateway),
        weight: next.hops,
        on_link: next.flags.contains(RouteNextHopFlags::Onlink),
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A neighbour, and its hardware address if it is permanent: others the guest finds for itself.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Option<[u8; 6]>)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::from(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::from(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(((message.header.ifindex, address?), mac.filter(|_| permanent)))
}
