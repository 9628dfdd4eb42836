//! The sandbox's network: links as the host describes them, in the guest's first network namespace.

mod message;
mod netlink;

use std::net::IpAddr;

use kata_protocol::agent::{Link, Neighbour, Route};
use message::{AddressMessage, LinkMessage, NeighbourMessage, Prefix, RouteMessage};
use netlink::{Device, Netlink};

use crate::order::{Failure, Step};

/// Index of the loopback link in every network namespace.
const LOOPBACK: u32 = 1;

/// Sets the loopback link up, which gives it its addresses.
pub fn loopback_up() -> std::io::Result<()> {
    let up = LinkMessage { index: LOOPBACK, name: None, mtu: None, up: true };
    Netlink::open()?.request(&up.encode())
}

/// Makes links, addresses, routes and neighbours what the host says.
pub fn configure(
    links: &[Link],
    routes: &[Route],
    neighbours: &[Neighbour],
) -> Result<(), Failure> {
    if links.is_empty() && routes.is_empty() && neighbours.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().step(|| "open a netlink socket")?;
    let devices = netlink.devices().step(|| "list links")?;
    // A name that is wanted may still be another device's: those that move get out of the way first.
    for link in links {
        let device = by_hardware_address(&devices, link)?;
        if device.name != link.name && devices.iter().any(|other| other.name == link.name) {
            let aside = LinkMessage {
                index: device.index,
                name: Some(format!("kata{}", device.index)),
                mtu: None,
                up: false,
            };
            netlink.request(&aside.encode()).step(|| format!("rename link {}", device.name))?;
        }
    }
    for link in links {
        let index = by_hardware_address(&devices, link)?.index;
        configure_link(&mut netlink, link, index)?;
    }
    let named = netlink.devices().step(|| "list links")?;
    for route in in_order(routes) {
        add_route(&mut netlink, route, &named)?;
    }
    for neighbour in neighbours {
        let step = || format!("add neighbour {}", neighbour.address);
        let message = NeighbourMessage {
            address: address(&neighbour.address)?,
            hardware_address: hardware_address(&neighbour.hardware_address)?,
            link: by_name(&named, &neighbour.link)?,
        };
        netlink.request(&message.encode()).step(step)?;
    }
    Ok(())
}

fn configure_link(netlink: &mut Netlink, link: &Link, index: u32) -> Result<(), Failure> {
    let mtu = (link.mtu != 0).then_some(link.mtu);
    // A link is renamed while it is down, and gets its addresses before it is used.
    let renamed = LinkMessage { index, name: Some(link.name.clone()), mtu, up: false };
    netlink.request(&renamed.encode()).step(|| format!("set up link {}", link.name))?;
    for text in &link.addresses {
        let message = AddressMessage { prefix: prefix(text)?, link: index };
        netlink
            .request(&message.encode())
            .step(|| format!("add address {text} to {}", link.name))?;
    }
    if link.up {
        let up = LinkMessage { index, name: None, mtu: None, up: true };
        netlink.request(&up.encode()).step(|| format!("set link {} up", link.name))?;
    }
    Ok(())
}

/// Routes without a gateway first: those with one are refused until it can be reached.
fn in_order(routes: &[Route]) -> impl Iterator<Item = &Route> {
    let direct = routes.iter().filter(|route| route.gateway.is_empty());
    direct.chain(routes.iter().filter(|route| !route.gateway.is_empty()))
}

fn add_route(netlink: &mut Netlink, route: &Route, devices: &[Device]) -> Result<(), Failure> {
    let optional = |text: &str| (!text.is_empty()).then(|| address(text)).transpose();
    let message = RouteMessage {
        destination: prefix(&route.destination)?,
        gateway: optional(&route.gateway)?,
        source: optional(&route.source)?,
        link: if route.link.is_empty() { None } else { Some(by_name(devices, &route.link)?) },
        scope: u8::try_from(route.scope)
            .map_err(|_| Failure::invalid(format!("route scope {} is none", route.scope)))?,
        metric: (route.metric != 0).then_some(route.metric),
        on_link: route.on_link,
    };
    netlink
        .request(&message.encode())
        .step(|| format!("add route to {} by {} {}", route.destination, route.gateway, route.link))
}

fn by_hardware_address<'a>(devices: &'a [Device], link: &Link) -> Result<&'a Device, Failure> {
    let wanted = hardware_address(&link.hardware_address)?;
    devices.iter().find(|device| device.hardware_address == wanted).ok_or_else(|| {
        Failure::invalid(format!("no link with hardware address {}", link.hardware_address))
    })
}

fn by_name(devices: &[Device], name: &str) -> Result<u32, Failure> {
    let found = devices.iter().find(|device| device.name == name);
    found.map(|device| device.index).ok_or_else(|| Failure::invalid(format!("no link {name}")))
}

fn address(text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| Failure::invalid(format!("{text:?} is no IP address")))
}

fn prefix(text: &str) -> Result<Prefix, Failure> {
    let wrong = || Failure::invalid(format!("{text:?} is no address with a prefix length"));
    let (network, length) = text.split_once('/').ok_or_else(wrong)?;
    let network = address(network)?;
    let length = length.parse().map_err(|_| wrong())?;
    let longest = if network.is_ipv4() { 32 } else { 128 };
    if length > longest { Err(wrong()) } else { Ok(Prefix { address: network, length }) }
}

fn hardware_address(text: &str) -> Result<Vec<u8>, Failure> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| Failure::invalid(format!("{text:?} is no hardware address")))
}

#[cfg(test)]
mod tests {
    use kata_protocol::agent::Route;

    use super::{hardware_address, in_order, prefix};

    #[test]
    fn malformed_addresses_are_refused() {
        for text in ["", "10.0.0.1", "10.0.0.1/33", "fd00::1/129", "x/8", "10.0.0.1/-1"] {
            assert!(prefix(text).is_err(), "{text}");
        }
        assert_eq!(prefix("fd00::2/64").unwrap().length, 64);
        for text in ["", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:gg", "aa:bb:cc:dd:ee:ff:00"] {
            assert!(hardware_address(text).is_err(), "{text}");
        }
        assert_eq!(hardware_address("02:00:00:00:00:0a").unwrap(), [2, 0, 0, 0, 0, 10]);
    }

    #[test]
    fn routes_to_gateways_come_before_those_through_them() {
        let route = |destination: &str, gateway: &str| Route {
            destination: destination.into(),
            gateway: gateway.into(),
            ..Route::default()
        };
        let routes = [route("0.0.0.0/0", "169.254.1.1"), route("169.254.1.1/32", "")];
        let order: Vec<_> = in_order(&routes).map(|route| route.destination.as_str()).collect();
        assert_eq!(order, ["169.254.1.1/32", "0.0.0.0/0"]);
    }
}
