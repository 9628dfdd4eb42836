//! The sandbox's network: links as the host describes them, in the guest's first network namespace.
//!
//! A link is on a *card*, a network device, which is found by the address that it was made with. Cards without a link are put
//! aside, into a namespace where no container sees them; a link that appears takes one from there under its final
//! name, and a card that has lost its link goes back.

mod message;
mod netlink;
mod spares;
mod words;

use std::{collections::HashMap, io};

use kata_protocol::agent::{Link, Neighbour, NetworkChange, Route};
use message::{AddressMessage, Hop, LinkMessage, NeighbourMessage, RouteMessage};
use netlink::{Device, Netlink};
use rustix::io::Errno;
use spares::Spares;
use words::{address, hardware_address, prefix};

use crate::order::{Failure, Step};

/// Index of the loopback link in every network namespace.
const LOOPBACK: u32 = 1;

/// What the kernel says when something is not there to be taken away.
const GONE: [Errno; 5] =
    [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL, Errno::NETUNREACH];

/// Sets the loopback link up, which gives it its addresses.
pub fn loopback_up() -> io::Result<()> {
    let up = LinkMessage { up: Some(true), ..LinkMessage::of(LOOPBACK) };
    Netlink::open()?.request(&up.encode())
}

/// The network as the host has described it so far.
#[derive(Default)]
pub struct Network {
    /// By their cards.
    links: HashMap<String, Link>,
    spares: Option<Spares>,
}

impl Network {
    /// Makes it what the host says. What can't be done does not keep the rest from being done; the first failure is told.
    pub fn apply(&mut self, change: &NetworkChange) -> Result<(), Failure> {
        if *change == NetworkChange::default() {
            return Ok(());
        }
        let mut netlink = Netlink::open().step(|| "open a netlink socket")?;
        let mut first = Ok(());
        let mut note = |result: Result<(), Failure>| {
            if first.is_ok() {
                first = result;
            }
        };
        for card in change.spare_cards.iter().chain(&change.removed_cards) {
            self.links.remove(card);
            note(self.put_aside(&mut netlink, card));
        }
        let devices = netlink.devices().step(|| "list links")?;
        for route in &change.removed_routes {
            note(remove_route(&mut netlink, route, &devices));
        }
        for neighbour in &change.removed_neighbours {
            note(change_neighbour(&mut netlink, neighbour, &devices, false));
        }
        for rule in &change.removed_rules {
            let removed = unless_gone(netlink.request(&message::remove_rule(rule)));
            note(removed.step(|| format!("remove rule {rule:02x?}")));
        }
        note(self.fetch(&mut netlink, &change.links));
        let devices = netlink.devices().step(|| "list links")?;
        note(make_way(&mut netlink, &change.links, &devices));
        for link in &change.links {
            note(self.set_link(&mut netlink, link, &devices));
        }
        let devices = netlink.devices().step(|| "list links")?;
        for route in in_order(&change.routes) {
            note(add_route(&mut netlink, route, &devices));
        }
        for rule in &change.rules {
            note(add_rule(&mut netlink, rule));
        }
        for neighbour in &change.neighbours {
            note(change_neighbour(&mut netlink, neighbour, &devices, true));
        }
        first
    }

    fn put_aside(&mut self, netlink: &mut Netlink, card: &str) -> Result<(), Failure> {
        let card = hardware_address(card)?;
        let devices = netlink.devices().step(|| "list links")?;
        let Some(device) = devices.iter().find(|device| device.card == card) else {
            return Ok(());
        };
        let spares = match &mut self.spares {
            Some(spares) => spares,
            none => none.insert(Spares::make().step(|| "make a namespace for spare cards")?),
        };
        spares.take(netlink, device).step(|| format!("put {} aside", device.name))
    }

    /// Brings the cards of new links in.
    fn fetch(&mut self, netlink: &mut Netlink, links: &[Link]) -> Result<(), Failure> {
        let Some(spares) = &mut self.spares else { return Ok(()) };
        let here = netlink.devices().step(|| "list links")?;
        for link in links.iter().filter(|link| !link.card.is_empty()) {
            let card = hardware_address(&link.card)?;
            if here.iter().any(|device| device.card == card) {
                continue;
            }
            let taken = here.iter().any(|device| device.name == link.name);
            let name = (!taken).then_some(link.name.as_str());
            spares.give(&card, name).step(|| format!("fetch a card for {}", link.name))?;
        }
        Ok(())
    }

    fn set_link(
        &mut self,
        netlink: &mut Netlink,
        link: &Link,
        devices: &[Device],
    ) -> Result<(), Failure> {
        let index = find(devices, link)?.index;
        if index != LOOPBACK {
            let set = LinkMessage {
                name: Some(link.name.clone()),
                mtu: (link.mtu != 0).then_some(link.mtu),
                hardware_address: Some(hardware_address(&link.hardware_address)?),
                no_arp: Some(link.no_arp),
                // Its addresses are those of the host's link, the one that would be made up here among them.
                no_generation: true,
                ..LinkMessage::of(index)
            };
            netlink.request(&set.encode()).step(|| format!("set up link {}", link.name))?;
        }
        switch_ipv6(link)?;
        let before = self.links.insert(link.card.clone(), link.clone()).unwrap_or_default();
        for text in before.addresses.iter().filter(|text| !link.addresses.contains(text)) {
            let message = AddressMessage { prefix: prefix(text)?, link: index };
            unless_gone(netlink.request(&message.encode_removal()))
                .step(|| format!("remove address {text} from {}", link.name))?;
        }
        for text in &link.addresses {
            let message = AddressMessage { prefix: prefix(text)?, link: index };
            netlink
                .request(&message.encode())
                .step(|| format!("add address {text} to {}", link.name))?;
        }
        if index == LOOPBACK {
            return Ok(());
        }
        let state = LinkMessage { up: Some(link.up), ..LinkMessage::of(index) };
        netlink.request(&state.encode()).step(|| format!("set the state of link {}", link.name))
    }
}

/// A name that is wanted may still be another device's: those that move get out of the way first.
fn make_way(netlink: &mut Netlink, links: &[Link], devices: &[Device]) -> Result<(), Failure> {
    for link in links {
        let device = find(devices, link)?;
        if device.name != link.name
            && let Some(other) = devices.iter().find(|other| other.name == link.name)
        {
            let aside = LinkMessage {
                name: Some(format!("kata{}", other.index)),
                ..LinkMessage::of(other.index)
            };
            netlink.request(&aside.encode()).step(|| format!("rename link {}", other.name))?;
        }
    }
    Ok(())
}

/// On a kernel without IPv6 there is nothing to switch.
fn switch_ipv6(link: &Link) -> Result<(), Failure> {
    let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link.name);
    match std::fs::write(&path, if link.no_ipv6 { "1" } else { "0" }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.step(|| format!("write {path}")),
    }
}

/// Routes without a gateway first: those with one are refused until it can be reached.
fn in_order(routes: &[Route]) -> impl Iterator<Item = &Route> {
    let direct = |route: &&Route| route.hops.iter().all(|hop| hop.gateway.is_empty());
    let others = move |route: &&Route| !direct(route);
    routes.iter().filter(direct).chain(routes.iter().filter(others))
}

fn route_message(route: &Route, devices: &[Device]) -> Result<Option<RouteMessage>, Failure> {
    let optional = |text: &str| (!text.is_empty()).then(|| address(text)).transpose();
    let byte = |number: u32, what: &str| {
        u8::try_from(number)
            .map_err(|_| Failure::invalid(format!("{what} {number} of a route is none")))
    };
    let mut hops = Vec::new();
    for hop in &route.hops {
        let Some(device) = devices.iter().find(|device| device.name == hop.link) else {
            return Ok(None);
        };
        hops.push(Hop {
            link: device.index,
            gateway: optional(&hop.gateway)?,
            weight: byte(hop.weight, "weight")?,
            on_link: hop.on_link,
        });
    }
    Ok(Some(RouteMessage {
        destination: prefix(&route.destination)?,
        hops,
        source: optional(&route.source)?,
        scope: byte(route.scope, "scope")?,
        kind: byte(route.kind, "kind")?,
        protocol: byte(route.protocol, "protocol")?,
        tos: byte(route.tos, "service")?,
        metric: route.metric,
        table: route.table,
        mtu: route.mtu,
    }))
}

fn add_route(netlink: &mut Netlink, route: &Route, devices: &[Device]) -> Result<(), Failure> {
    let step = || format!("add route to {} {:?}", route.destination, route.hops);
    let message = route_message(route, devices)?;
    let message = message.ok_or_else(|| Failure::invalid(format!("{}: no such link", step())))?;
    unless_there(netlink.request(&message.encode())).step(step)
}

fn add_rule(netlink: &mut Netlink, rule: &[u8]) -> Result<(), Failure> {
    unless_there(netlink.request(&message::add_rule(rule))).step(|| format!("add rule {rule:02x?}"))
}

fn unless_there(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(()),
        done => done,
    }
}

/// With its link, a route has gone by itself.
fn remove_route(netlink: &mut Netlink, route: &Route, devices: &[Device]) -> Result<(), Failure> {
    let Some(message) = route_message(route, devices)? else { return Ok(()) };
    unless_gone(netlink.request(&message.encode_removal()))
        .step(|| format!("remove route to {}", route.destination))
}

fn change_neighbour(
    netlink: &mut Netlink,
    neighbour: &Neighbour,
    devices: &[Device],
    there: bool,
) -> Result<(), Failure> {
    let Some(device) = devices.iter().find(|device| device.name == neighbour.link) else {
        return Ok(());
    };
    let message = NeighbourMessage {
        address: address(&neighbour.address)?,
        hardware_address: hardware_address(&neighbour.hardware_address)?,
        link: device.index,
    };
    let done = if there {
        netlink.request(&message.encode())
    } else {
        unless_gone(netlink.request(&message.encode_removal()))
    };
    done.step(|| format!("change neighbour {}", neighbour.address))
}

fn find<'a>(devices: &'a [Device], link: &Link) -> Result<&'a Device, Failure> {
    let found = if link.card.is_empty() {
        devices.iter().find(|device| device.index == LOOPBACK)
    } else {
        let card = hardware_address(&link.card)?;
        devices.iter().find(|device| device.card == card)
    };
    found.ok_or_else(|| Failure::invalid(format!("no card {} for link {}", link.card, link.name)))
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if GONE.iter().any(|gone| error.raw_os_error() == Some(gone.raw_os_error())) => {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use kata_protocol::agent::{Hop, Route};

    use super::in_order;

    #[test]
    fn routes_to_gateways_come_before_those_through_them() {
        let route = |destination: &str, gateway: &str| Route {
            destination: destination.into(),
            hops: vec![Hop { gateway: gateway.into(), ..Hop::default() }],
            ..Route::default()
        };
        let routes = [route("0.0.0.0/0", "169.254.1.1"), route("169.254.1.1/32", "")];
        let order: Vec<_> = in_order(&routes).map(|route| route.destination.as_str()).collect();
        assert_eq!(order, ["169.254.1.1/32", "0.0.0.0/0"]);
    }
}
