//! Reads what a network namespace holds: links, addresses, routes, neighbours.

use std::{collections::BTreeMap, net::IpAddr};

use futures_util::TryStreamExt;
use kata_protocol::agent;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
            RouteType,
        },
    },
};

use super::{Network, NetworkError};

/// A link that is passed through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostLink {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// A namespace's contents, as the host needs them and as the guest gets them.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub links: Vec<HostLink>,
    pub guest: Network,
}

pub(super) async fn scan(handle: &Handle) -> Result<Found, NetworkError> {
    let mut found = Found::default();
    let mut names = BTreeMap::new();
    let failed = |what| move |source| NetworkError::List { what, source };
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
    for message in &links {
        let Some((link, up)) = read_link(message)? else { continue };
        names.insert(link.index, found.guest.links.len());
        found.guest.links.push(agent::Link {
            name: link.name.clone(),
            hardware_address: format_mac(&link.mac),
            mtu: link.mtu,
            up,
            ..Default::default()
        });
        found.links.push(link);
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(failed("addresses"))? {
        if let Some(place) = names.get(&message.header.index)
            && let Some(address) = read_address(&message.attributes)
        {
            found.guest.links[*place]
                .addresses
                .push(format!("{address}/{}", message.header.prefix_len));
        }
    }
    let name_of = |index: u32| Some(found.links.get(*names.get(&index)?)?.name.clone());
    for route in routes(handle).await.map_err(failed("routes"))? {
        found.guest.routes.extend(read_route(&route, &name_of));
    }
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(message) = neighbours.try_next().await.map_err(failed("neighbours"))? {
        found.guest.neighbours.extend(read_neighbour(&message, &name_of));
    }
    Ok(found)
}

async fn routes(handle: &Handle) -> Result<Vec<RouteMessage>, rtnetlink::Error> {
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let mut all: Vec<RouteMessage> = handle.route().get(v4).execute().try_collect().await?;
    all.extend(handle.route().get(v6).execute().try_collect::<Vec<_>>().await?);
    Ok(all)
}

/// Loopback, and the taps of other sandboxes of ours, are passed over; a kind that is no Ethernet is an error.
fn read_link(message: &LinkMessage) -> Result<Option<(HostLink, bool)>, NetworkError> {
    if message.header.flags.contains(LinkFlags::Loopback) {
        return Ok(None);
    }
    let mut link =
        HostLink { index: message.header.index, name: String::new(), mac: [0; 6], mtu: 1500 };
    let mut kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                if let Ok(mac) = mac.as_slice().try_into() {
                    link.mac = mac;
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // The kernel puts these into every new namespace; they are down and go nowhere.
    let fallback = [
        "sit0", "ip6tnl0", "tunl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0",
    ];
    if fallback.contains(&link.name.as_str()) || kind == Some(InfoKind::Tun) {
        return Ok(None);
    }
    if message.header.link_layer_type != LinkLayerType::Ether {
        let kind =
            kind.map_or_else(|| format!("{:?}", message.header.link_layer_type), |k| k.to_string());
        return Err(NetworkError::Kind { link: link.name, kind });
    }
    Ok(Some((link, message.header.flags.contains(LinkFlags::Up))))
}

/// `Local` is the link's own address where the two differ (point to point). Link-local IPv6 comes of the MAC, which the
/// guest has too.
fn read_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(any)?;
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!link_local).then_some(address)
}

/// Routes of the main table that somebody set: those that the kernel derives from an address come with it in the guest.
fn read_route(
    message: &RouteMessage,
    name_of: &impl Fn(u32) -> Option<String>,
) -> Option<agent::Route> {
    let header = &message.header;
    let ours = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel;
    if !ours {
        return None;
    }
    let v6 = header.address_family == AddressFamily::Inet6;
    let mut route = agent::Route {
        destination: if v6 { "::/0".into() } else { "0.0.0.0/0".into() },
        scope: u8::from(header.scope).into(),
        on_link: header.flags.contains(RouteFlags::Onlink),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination =
                    format!("{}/{}", format_route(address)?, header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => route.gateway = format_route(address)?,
            RouteAttribute::PrefSource(address) => route.source = format_route(address)?,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => route.link = name_of(*index)?,
            _ => {}
        }
    }
    (!route.link.is_empty()).then_some(route)
}

fn read_neighbour(
    message: &NeighbourMessage,
    name_of: &impl Fn(u32) -> Option<String>,
) -> Option<agent::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour =
        agent::Neighbour { link: name_of(message.header.ifindex)?, ..Default::default() };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbour.address = address.to_string();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = address.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => {
                neighbour.hardware_address = format_mac(mac.as_slice().try_into().ok()?);
            }
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && !neighbour.hardware_address.is_empty()).then_some(neighbour)
}

fn format_route(address: &RouteAddress) -> Option<String> {
    match address {
        RouteAddress::Inet(address) => Some(address.to_string()),
        RouteAddress::Inet6(address) => Some(address.to_string()),
        _ => None,
    }
}

fn format_mac(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
