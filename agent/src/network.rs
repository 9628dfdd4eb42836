//! The sandbox's network: links as the host describes them, in the guest's first network namespace.
//!
//! A link is on a *card*, a network device, which is found by the address that it was made with. Cards without a link are put
//! aside, into a namespace where no container sees them; a link that appears takes one from there under its final
//! name, and a card that has lost its link goes back.

pub mod arrival;
mod message;
mod netlink;
mod spares;
mod sysctls;
mod words;

use std::{collections::HashMap, io};

use kata_protocol::agent::{Link, LinkFailure, Neighbour, NetworkChange, NetworkChanged, Route};
use message::{AddressMessage, Hop, LinkMessage, MOST_HOPS, NeighbourMessage, RouteMessage};
use netlink::{Device, Netlink};
use rustix::io::Errno;
use spares::Spares;
use words::{address, hardware_address, prefix};

use crate::order::{Failure, FailureKind, Step};

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

/// What of a change was not done.
#[derive(Default)]
pub struct Undone {
    links: Vec<(Link, Failure)>,
    others: Vec<Failure>,
    /// Kernel parameters of links, which serve without.
    sysctls: Vec<(String, Failure)>,
}

impl Undone {
    fn note(&mut self, done: Result<(), Failure>) {
        self.others.extend(done.err());
    }

    /// What is on a link that failed fails with it, and is not told again.
    fn may_use(&self, name: &str) -> bool {
        self.links.iter().all(|(link, _)| link.name != name)
    }

    /// For who has no use for a part: the kernel parameters of links that were left out.
    pub fn into_result(self) -> Result<Vec<String>, Failure> {
        let links = self.links.into_iter().map(|(_, failure)| failure);
        let left_out = self.sysctls.into_iter().map(|(path, _)| path);
        links.chain(self.others).next().map_or(Ok(left_out.collect()), Err)
    }

    /// As the host is told.
    pub fn into_answer(self) -> NetworkChanged {
        let links = self.links.into_iter().map(|(link, failure)| LinkFailure {
            card: link.card,
            absent: failure.kind == FailureKind::NotFound,
            reason: failure.message,
            ..LinkFailure::default()
        });
        let others = self.others.into_iter().chain(self.sysctls.into_iter().map(|it| it.1));
        NetworkChanged {
            links: links.collect(),
            others: others.map(|failure| failure.message).collect(),
            ..NetworkChanged::default()
        }
    }
}

/// The network as the host has described it so far.
#[derive(Default)]
pub struct Network {
    /// By their cards.
    links: HashMap<String, Link>,
    spares: Option<Spares>,
}

impl Network {
    /// Makes it what the host says. What can't be done keeps nothing else from being done, but what is on the same link.
    pub fn apply(&mut self, change: &NetworkChange) -> Result<Undone, Failure> {
        let mut undone = Undone::default();
        if *change == NetworkChange::default() {
            return Ok(undone);
        }
        let mut netlink = Netlink::open().step(|| "open a netlink socket")?;
        for card in change.spare_cards.iter().chain(&change.removed_cards) {
            self.links.remove(card);
            undone.note(self.put_aside(&mut netlink, card));
        }
        let devices = netlink.devices().step(|| "list links")?;
        for route in &change.removed_routes {
            undone.note(remove_route(&mut netlink, route, &devices));
        }
        for neighbour in &change.removed_neighbours {
            undone.note(change_neighbour(&mut netlink, neighbour, &devices, false));
        }
        for rule in &change.removed_rules {
            let removed = unless_gone(netlink.request(&message::remove_rule(rule)));
            undone.note(removed.step(|| format!("remove rule {rule:02x?}")));
        }
        self.set_links(&mut netlink, &change.links, &mut undone)?;
        let devices = netlink.devices().step(|| "list links")?;
        for route in in_order(&change.routes) {
            if route.hops.iter().all(|hop| undone.may_use(&hop.link)) {
                undone.note(add_route(&mut netlink, route, &devices));
            }
        }
        for rule in &change.rules {
            undone.note(add_rule(&mut netlink, rule));
        }
        for neighbour in &change.neighbours {
            if undone.may_use(&neighbour.link) {
                undone.note(change_neighbour(&mut netlink, neighbour, &devices, true));
            }
        }
        Ok(undone)
    }

    /// Makes links what they shall be, each as far as it goes without the others.
    fn set_links(
        &mut self,
        netlink: &mut Netlink,
        links: &[Link],
        undone: &mut Undone,
    ) -> Result<(), Failure> {
        let mut devices = netlink.devices().step(|| "list links")?;
        let fetched: Vec<_> = links.iter().map(|link| self.fetch(link, &devices)).collect();
        devices = netlink.devices().step(|| "list links")?;
        let ready: Vec<_> = links
            .iter()
            .zip(fetched)
            .map(|(link, fetched)| fetched.and_then(|()| make_way(netlink, link, &devices)))
            .collect();
        for (link, ready) in links.iter().zip(ready) {
            let set = ready.and_then(|()| self.set_link(netlink, link, &devices, undone));
            if let Err(failure) = set {
                undone.links.push((link.clone(), failure));
            }
        }
        Ok(())
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

    /// Brings the card of a new link in.
    fn fetch(&mut self, link: &Link, here: &[Device]) -> Result<(), Failure> {
        let absent = match find(here, link) {
            Ok(_) => return Ok(()),
            Err(absent) => absent,
        };
        let (Some(spares), false) = (&mut self.spares, link.card.is_empty()) else {
            return Err(absent);
        };
        let taken = here.iter().any(|device| device.name == link.name);
        let name = (!taken).then_some(link.name.as_str());
        let given = spares.give(&hardware_address(&link.card)?, name);
        let given = given.step(|| format!("fetch a card for {}", link.name))?;
        if given { Ok(()) } else { Err(absent) }
    }

    fn set_link(
        &mut self,
        netlink: &mut Netlink,
        link: &Link,
        devices: &[Device],
        undone: &mut Undone,
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
        // Before it has addresses and is up: they say how it comes up, too.
        undone.sysctls.extend(sysctls::set(link, self.links.get(&link.card)));
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
fn make_way(netlink: &mut Netlink, link: &Link, devices: &[Device]) -> Result<(), Failure> {
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

/// Routes without a gateway first: those with one are refused until it can be reached. Likes, which differ in nothing but where
/// they lead to, stay together and in their order, for it decides which of them is used.
fn in_order(routes: &[Route]) -> Vec<&Route> {
    let key = |route: &Route| (route.table, route.destination.clone(), route.tos, route.metric);
    // Of the likes some have no gateway, and some have one.
    let mut kinds: HashMap<_, [bool; 2]> = HashMap::new();
    for route in routes {
        let has_gateway = route.hops.iter().any(|hop| !hop.gateway.is_empty());
        kinds.entry(key(route)).or_default()[usize::from(has_gateway)] = true;
    }
    let rank = |route: &&Route| match kinds.get(&key(route)) {
        Some([_, false]) | None => 0,
        Some([true, true]) => 1,
        Some([false, true]) => 2,
    };
    let mut ordered: Vec<&Route> = routes.iter().collect();
    ordered.sort_by_cached_key(rank);
    ordered
}

fn route_message(route: &Route, devices: &[Device]) -> Result<Option<RouteMessage>, Failure> {
    let optional = |text: &str| (!text.is_empty()).then(|| address(text)).transpose();
    let byte = |number: u32, what: &str| {
        u8::try_from(number)
            .map_err(|_| Failure::invalid(format!("{what} {number} of a route is none")))
    };
    if route.hops.len() > MOST_HOPS {
        return Err(Failure::invalid(format!("a route has {} ways", route.hops.len())));
    }
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
    found.ok_or_else(|| Failure {
        kind: FailureKind::NotFound,
        message: format!("card {} of link {} has no device", link.card, link.name),
    })
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
    use kata_protocol::agent::{Hop, Link, Neighbour, NetworkChange, Route};

    use super::{Network, in_order};

    #[test]
    fn each_link_that_fails_is_told_and_whether_its_card_may_still_come() {
        let link = |name: &str, card: &str| Link {
            name: name.into(),
            card: card.into(),
            hardware_address: card.into(),
            ..Link::default()
        };
        let on = |link: &str| Neighbour { link: link.into(), ..Neighbour::default() };
        let change = NetworkChange {
            links: vec![link("net1", "02:6b:ff:ff:ff:fe"), link("net2", "x")],
            // What is on a link that fails is not told again; this one's address is none.
            neighbours: vec![on("net1"), on("net2"), on("lo")],
            ..NetworkChange::default()
        };
        let told = Network::default().apply(&change).unwrap().into_answer();
        let links: Vec<_> = told.links.iter().map(|l| (l.card.as_str(), l.absent)).collect();
        assert_eq!(links, [("02:6b:ff:ff:ff:fe", true), ("x", false)]);
        assert_eq!(told.others.len(), 1, "{told:?}");
    }

    #[test]
    fn routes_to_gateways_come_before_those_through_them() {
        let route = |destination: &str, gateway: &str| Route {
            destination: destination.into(),
            hops: vec![Hop { gateway: gateway.into(), ..Hop::default() }],
            ..Route::default()
        };
        let routes = [
            route("0.0.0.0/0", "169.254.1.1"),
            route("10.0.0.0/8", "169.254.1.1"),
            route("10.0.0.0/8", ""),
            route("169.254.1.1/32", ""),
        ];
        let order: Vec<_> = in_order(&routes)
            .iter()
            .map(|route| (route.destination.as_str(), route.hops[0].gateway.as_str()))
            .collect();
        assert_eq!(
            order,
            [
                ("169.254.1.1/32", ""),
                // Likes stay as they are.
                ("10.0.0.0/8", "169.254.1.1"),
                ("10.0.0.0/8", ""),
                ("0.0.0.0/0", "169.254.1.1"),
            ]
        );
    }
}
