//! What the guest has of a namespace, and how it gets from one state to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use kata_protocol::agent;

use super::{
    model::{Model, NeighbourKey, Passage, Prefix},
    routes::{Route, Routes},
    rule::{self, Rule},
};

/// Address of a card, which it keeps whatever link it carries.
pub(super) type CardAddress = [u8; 6];

/// The part of a model that is in the guest: what is on links that have a card, and on loopback.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    links: BTreeMap<u32, agent::Link>,
    routes: Routes,
    rules: BTreeSet<Rule>,
    neighbours: BTreeMap<NeighbourKey, [u8; 6]>,
}

impl View {
    /// What every namespace has, the guest's among them.
    pub fn of_a_new_namespace() -> Self {
        Self { rules: rule::defaults(), ..Self::default() }
    }

    pub fn of(model: &Model, cards: &BTreeMap<u32, CardAddress>) -> Self {
        let mut links = BTreeMap::new();
        for (index, link) in &model.links {
            let card = match cards.get(index) {
                Some(card) => format_mac(card),
                None if link.loopback => String::new(),
                None => continue,
            };
            let mine = model.addresses.iter().filter(|(link, _)| link == index);
            let has_ipv6 = mine.clone().any(|(_, prefix)| prefix.address.is_ipv6());
            let addresses = mine.map(|(_, prefix)| format_prefix(*prefix)).collect();
            let told = agent::Link {
                name: link.name.clone(),
                hardware_address: match link.passage {
                    Passage::Packets | Passage::Unaddressed => card.clone(),
                    _ => format_mac(&link.mac),
                },
                mtu: link.mtu,
                addresses,
                up: link.up,
                card,
                no_arp: link.no_arp || link.passage == Passage::Packets,
                // Of IPv6 that is switched on later the kernel tells nothing but this.
                no_ipv6: link.no_ipv6 && !has_ipv6,
                ..Default::default()
            };
            links.insert(*index, told);
        }
        let there = |index: u32| links.contains_key(&index);
        let mut routes = model.routes.clone();
        routes.retain(|route| route.hops.iter().all(|hop| there(hop.link)));
        routes.leave_dead_ways_out(|index| links.get(&index).is_some_and(|link| link.up));
        let neighbours = model.neighbours.iter().filter(|((link, _), _)| there(*link));
        Self {
            routes,
            rules: model.rules.clone(),
            neighbours: neighbours.map(|(key, mac)| (*key, *mac)).collect(),
            links,
        }
    }

    /// Of a link the guest may have anything, and nothing of what is on it: all of it is told again, or its card taken back.
    pub fn doubt(&mut self, index: u32) {
        if let Some(link) = self.links.get_mut(&index) {
            let card = std::mem::take(&mut link.card);
            *link = agent::Link { card, ..agent::Link::default() };
        }
        self.routes.retain(|route| !route.uses(index));
        self.neighbours.retain(|(link, _), _| *link != index);
    }

    /// What leads from `before` to `self`; none when nothing does.
    pub fn change_since(&self, before: &Self) -> Option<agent::NetworkChange> {
        let mut change = agent::NetworkChange::default();
        for (index, link) in &before.links {
            if !self.links.contains_key(index) {
                change.removed_cards.push(link.card.clone());
            }
        }
        for (index, link) in &self.links {
            if before.links.get(index) != Some(link) {
                change.links.push(link.clone());
            }
        }
        // With a link that went, and with one that goes down, the guest's routes went.
        let stays = |route: &Route| route.hops.iter().all(|hop| self.links.contains_key(&hop.link));
        // They go with the last IPv4 address of their link, and that may be gone for a moment.
        let lost = |route: &Route| {
            !route.is_ipv6() && route.hops.iter().any(|hop| self.readdresses(before, hop.link))
        };
        let (gone, come) = self.routes.changes_since(&before.routes, stays, lost);
        change.removed_routes = gone.into_iter().map(|route| before.route(route)).collect();
        change.routes = come.into_iter().map(|route| self.route(route)).collect();
        let bytes = |rule: &Rule| rule.bytes().to_vec();
        change.removed_rules = before.rules.difference(&self.rules).map(bytes).collect();
        change.rules = self.rules.difference(&before.rules).map(bytes).collect();
        for (key, mac) in &before.neighbours {
            if !self.neighbours.contains_key(key) && self.links.contains_key(&key.0) {
                change.removed_neighbours.push(before.neighbour(key, mac));
            }
        }
        for (key, mac) in &self.neighbours {
            if before.neighbours.get(key) != Some(mac) {
                change.neighbours.push(self.neighbour(key, mac));
            }
        }
        (change != agent::NetworkChange::default()).then_some(change)
    }

    /// Whether a link gives up an IPv4 address that it had; others may go along with it.
    fn readdresses(&self, before: &Self, index: u32) -> bool {
        let (Some(now), Some(before)) = (self.links.get(&index), before.links.get(&index)) else {
            return false;
        };
        let mut ipv4 = before.addresses.iter().filter(|address| !address.contains(':'));
        ipv4.any(|address| !now.addresses.contains(address))
    }

    fn name(&self, index: u32) -> String {
        self.links.get(&index).map(|link| link.name.clone()).unwrap_or_default()
    }

    fn route(&self, route: &Route) -> agent::Route {
        let hops = route.hops.iter().map(|hop| agent::Hop {
            link: self.name(hop.link),
            gateway: hop.gateway.as_ref().map(IpAddr::to_string).unwrap_or_default(),
            weight: hop.weight.into(),
            on_link: hop.on_link,
            ..Default::default()
        });
        agent::Route {
            destination: format_prefix(route.key.destination),
            hops: hops.collect(),
            source: route.source.as_ref().map(IpAddr::to_string).unwrap_or_default(),
            scope: route.scope.into(),
            metric: route.key.metric,
            table: route.key.table,
            kind: route.kind.into(),
            protocol: route.protocol.into(),
            tos: route.key.tos.into(),
            mtu: route.mtu,
            ..Default::default()
        }
    }

    fn neighbour(&self, key: &NeighbourKey, mac: &[u8; 6]) -> agent::Neighbour {
        agent::Neighbour {
            address: key.1.to_string(),
            hardware_address: format_mac(mac),
            link: self.name(key.0),
            ..Default::default()
        }
    }
}

fn format_prefix(prefix: Prefix) -> String {
    format!("{}/{}", prefix.address, prefix.length)
}

pub(super) fn format_mac(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{Model, View};
    use crate::network::{
        model::{Link, Prefix},
        routes::{Hop, Place, Route, RouteKey, Routes},
    };

    fn model() -> Model {
        let prefix = |text: &str| Prefix { address: text.parse().unwrap(), length: 24 };
        let hops = vec![Hop { link: 2, gateway: None, weight: 0, on_link: false }];
        let mut routes = Routes::default();
        let route = Route {
            key: RouteKey { table: 254, destination: prefix("192.0.2.0"), tos: 0, metric: 0 },
            hops,
            kind: 1,
            source: None,
            scope: 253,
            protocol: 2,
            mtu: 0,
        };
        routes.add(route, Place::Last);
        Model {
            links: BTreeMap::from([(2, Link::veth("eth0")), (3, Link::veth("net1"))]),
            addresses: vec![(2, prefix("192.0.2.2")), (3, prefix("198.51.100.2"))],
            routes,
            rules: BTreeSet::new(),
            neighbours: BTreeMap::from([((3, "198.51.100.1".parse().unwrap()), [2; 6])]),
        }
    }

    #[test]
    fn only_what_has_a_card_is_told() {
        let first = View::of(&model(), &BTreeMap::from([(2, [9; 6])]));
        let change = first.change_since(&View::default()).unwrap();
        assert_eq!(change.links.len(), 1);
        assert_eq!(change.links[0].addresses, ["192.0.2.2/24"]);
        assert_eq!(change.links[0].card, "09:09:09:09:09:09");
        assert_eq!((change.routes.len(), change.neighbours.len()), (1, 0));
        assert_eq!(change.routes[0].hops[0].link, "eth0");
    }

    #[test]
    fn a_change_names_what_has_changed_and_nothing_else() {
        let cards = BTreeMap::from([(2, [9; 6]), (3, [8; 6])]);
        let before = View::of(&model(), &cards);
        assert_eq!(before.change_since(&before), None);
        let mut renamed = model();
        renamed.links.get_mut(&3).unwrap().name = "net2".into();
        renamed.routes = Routes::default();
        let change = View::of(&renamed, &cards).change_since(&before).unwrap();
        let names: Vec<_> = change.links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!((names, change.removed_routes.len()), (vec!["net2"], 1));
        assert!(change.routes.is_empty() && change.removed_cards.is_empty());
    }

    #[test]
    fn a_link_with_an_ipv6_address_has_ipv6() {
        let mut model = model();
        model.links.get_mut(&2).unwrap().no_ipv6 = true;
        let cards = BTreeMap::from([(2, [9; 6])]);
        let before = View::of(&model, &cards);
        model.addresses.push((2, Prefix { address: "fe80::2".parse().unwrap(), length: 64 }));
        let change = View::of(&model, &cards).change_since(&before).unwrap();
        assert!(before.links[&2].no_ipv6 && !change.links[0].no_ipv6);
    }

    #[test]
    fn with_another_ipv4_address_a_link_is_told_its_routes_again() {
        let cards = BTreeMap::from([(2, [9; 6]), (3, [8; 6])]);
        let before = View::of(&model(), &cards);
        for (link, told) in [(2, 1), (3, 0)] {
            let mut model = model();
            model.addresses.retain(|(owner, _)| *owner != link);
            let change = View::of(&model, &cards).change_since(&before).unwrap();
            assert_eq!((change.routes.len(), change.removed_routes.len()), (told, told));
        }
    }

    #[test]
    fn what_is_in_doubt_is_told_again_or_taken_back() {
        let cards = BTreeMap::from([(2, [9; 6]), (3, [8; 6])]);
        let now = View::of(&model(), &cards);
        let mut told = now.clone();
        told.doubt(2);
        let change = now.change_since(&told).unwrap();
        assert_eq!((change.links.len(), change.routes.len(), change.neighbours.len()), (1, 1, 0));
        told.doubt(3);
        let change = now.change_since(&told).unwrap();
        assert_eq!((change.links.len(), change.neighbours.len()), (2, 1));
        assert!(change.removed_cards.is_empty() && change.removed_routes.is_empty());
        let gone = View::of(&model(), &BTreeMap::from([(2, [9; 6])]));
        let change = gone.change_since(&told).unwrap();
        assert_eq!(change.removed_cards, ["08:08:08:08:08:08"]);
    }

    #[test]
    fn with_a_card_goes_what_was_on_it() {
        let before = View::of(&model(), &BTreeMap::from([(2, [9; 6]), (3, [8; 6])]));
        let after = View::of(&model(), &BTreeMap::from([(3, [8; 6])]));
        let change = after.change_since(&before).unwrap();
        assert_eq!(change.removed_cards, ["09:09:09:09:09:09"]);
        assert!(change.removed_routes.is_empty() && change.links.is_empty());
    }
}
