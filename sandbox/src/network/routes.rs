//! Routes, in the kernel's order among those that differ in nothing but where they lead to.
//!
//! Of such likes IPv4 takes the first, and puts a new one before or behind the others as it is asked to. IPv6 puts a new one
//! behind them, unless it has a gateway: those are one route of several ways, of which every word names all; only a way that
//! goes is named alone.

use std::{collections::BTreeMap, net::IpAddr};

use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_REPLACE};

use super::model::Prefix;

/// One way that a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hop {
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub weight: u8,
    pub on_link: bool,
}

/// What a packet's way is looked up by, and the metric; routes that have it in common are likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RouteKey {
    pub table: u32,
    pub destination: Prefix,
    pub tos: u8,
    pub metric: u32,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub key: RouteKey,
    /// None for one that leads nowhere: blackhole, unreachable, prohibit, throw.
    pub hops: Vec<Hop>,
    pub kind: u8,
    pub source: Option<IpAddr>,
    pub scope: u8,
    pub protocol: u8,
    pub mtu: u32,
}

impl Route {
    pub fn is_ipv6(&self) -> bool {
        self.key.destination.address.is_ipv6()
    }

    pub fn uses(&self, link: u32) -> bool {
        self.hops.iter().any(|hop| hop.link == link)
    }

    /// Whether the kernel makes one of it and of its likes that say so, too.
    fn merges(&self) -> bool {
        let has_gateways = !self.hops.is_empty() && self.hops.iter().all(|h| h.gateway.is_some());
        self.is_ipv6() && has_gateways
    }

    /// Leaves the ways that `stays` names; false when none is left.
    pub fn narrow(&mut self, stays: impl Fn(&Hop) -> bool) -> bool {
        let led_nowhere = self.hops.is_empty();
        self.hops.retain(stays);
        led_nowhere || !self.hops.is_empty()
    }
}

/// Where a route comes among its likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    First,
    Last,
    /// In the place of the first one.
    Instead,
}

impl Place {
    /// As the flags of an event have it.
    pub fn of(flags: u16) -> Self {
        match flags {
            flags if flags & NLM_F_REPLACE != 0 => Self::Instead,
            flags if flags & NLM_F_APPEND != 0 => Self::Last,
            _ => Self::First,
        }
    }
}

/// Routes by their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Routes(BTreeMap<RouteKey, Vec<Route>>);

impl Routes {
    /// Takes one in.
    pub fn add(&mut self, route: Route, place: Place) {
        let likes = self.0.entry(route.key).or_default();
        // The kernel has no two that are the same: what was read is told once more.
        if likes.contains(&route) {
            return;
        }
        let ipv6 = route.is_ipv6();
        let like = likes.iter().position(|like| like.merges() == route.merges());
        let at = match place {
            Place::Instead => like.or((!likes.is_empty()).then_some(0)),
            Place::First | Place::Last => like.filter(|_| route.merges()),
        };
        match at {
            Some(at) => likes[at] = route,
            None if place == Place::First && !ipv6 => likes.insert(0, route),
            None => likes.push(route),
        }
    }

    /// Takes one out, or some ways of one.
    pub fn remove(&mut self, route: &Route) {
        let Some(likes) = self.0.get_mut(&route.key) else { return };
        if let Some(same) = likes.iter().position(|like| like == route) {
            likes.remove(same);
        } else {
            let goes = |hop: &Hop| {
                let way = (hop.link, hop.gateway);
                route.is_ipv6() && route.hops.iter().any(|gone| (gone.link, gone.gateway) == way)
            };
            likes.retain_mut(|like| like.hops != route.hops && like.narrow(|hop| !goes(hop)));
        }
        if likes.is_empty() {
            self.0.remove(&route.key);
        }
    }

    /// Takes those out that are not to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(&mut Route) -> bool) {
        self.0.retain(|_, likes| {
            likes.retain_mut(&mut stays);
            !likes.is_empty()
        });
    }

    /// Leaves those ways out of routes with several that no kernel would take: by a link that is down, or to a gateway that is not
    /// to be reached by it. The kernel that had them before has them as dead.
    pub fn leave_dead_ways_out(&mut self, is_up: impl Fn(u32) -> bool) {
        let mut reached: BTreeMap<u32, Vec<Prefix>> = BTreeMap::new();
        for route in self.0.values().flatten() {
            if let [Hop { link, gateway: None, .. }] = route.hops[..] {
                reached.entry(link).or_default().push(route.key.destination);
            }
        }
        let reaches = |link, gateway| match gateway {
            // Needs no route.
            IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
            _ => reached.get(&link).into_iter().flatten().any(|prefix| prefix.contains(gateway)),
        };
        let serves = |hop: &Hop| {
            let leads_on = |gateway| hop.on_link || reaches(hop.link, gateway);
            is_up(hop.link) && hop.gateway.is_none_or(leads_on)
        };
        for route in self.0.values_mut().flatten() {
            if route.hops.len() > 1 && route.hops.iter().any(serves) {
                route.hops.retain(serves);
            }
        }
    }

    /// What leads from `before` to here: what goes, and what comes then, behind its likes. What does not stay has gone by itself,
    /// and what may be lost comes once more, with the likes behind it.
    pub fn changes_since<'a>(
        &'a self,
        before: &'a Self,
        stays: impl Fn(&Route) -> bool,
        lost: impl Fn(&Route) -> bool,
    ) -> (Vec<&'a Route>, Vec<&'a Route>) {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (key, old) in &before.0 {
            if !self.0.contains_key(key) {
                gone.extend(old.iter().filter(|route| stays(route)));
            }
        }
        for (key, new) in &self.0 {
            let old: Vec<&Route> =
                before.0.get(key).into_iter().flatten().filter(|route| stays(route)).collect();
            // From where the order is another one, or one may be missing, all of them are set anew.
            let kept = old.iter().filter(|route| new.contains(route));
            let same = kept.zip(new).take_while(|(a, b)| **a == *b && !lost(b)).count();
            let (same, others) = new.split_at(same);
            gone.extend(old.into_iter().filter(|route| !same.contains(route)));
            come.extend(others);
        }
        (gone, come)
    }
}

#[cfg(test)]
impl Routes {
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::{Hop, Place, Prefix, Route, RouteKey, Routes};

    /// Ways are `GATEWAY@LINK`, or `@LINK`.
    fn route(destination: &str, ways: &[&str]) -> Route {
        let destination = Prefix { address: destination.parse().unwrap(), length: 32 };
        let hop = |way: &&str| {
            let (gateway, link) = way.split_once('@').unwrap();
            let (link, gateway) = (link.parse().unwrap(), gateway.parse().ok());
            Hop { link, gateway, weight: 0, on_link: false }
        };
        Route {
            key: RouteKey { table: 254, destination, tos: 0, metric: 100 },
            hops: ways.iter().map(hop).collect(),
            kind: 1,
            source: None,
            scope: 0,
            protocol: 3,
            mtu: 0,
        }
    }

    fn ways(route: &Route) -> Vec<String> {
        let gateway = |hop: &Hop| hop.gateway.map(|it| it.to_string()).unwrap_or_default();
        route.hops.iter().map(|hop| format!("{}@{}", gateway(hop), hop.link)).collect()
    }

    fn all<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Vec<String> {
        routes.into_iter().map(|route| ways(route).join(" ")).collect()
    }

    fn routes(steps: &[(Place, Route)]) -> Routes {
        let mut routes = Routes::default();
        steps.iter().for_each(|(place, route)| routes.add(route.clone(), *place));
        routes
    }

    #[test]
    fn likes_of_ipv4_are_in_the_order_in_which_the_kernel_looks_at_them() {
        let to = |way| route("0.0.0.0", &[way]);
        let steps = [
            (Place::First, to("10.0.0.1@2")),
            (Place::First, to("10.0.0.2@3")),
            (Place::Last, to("10.0.0.3@4")),
        ];
        let mut both = routes(&steps);
        assert_eq!(all(both.iter()), ["10.0.0.2@3", "10.0.0.1@2", "10.0.0.3@4"]);
        both.add(to("10.0.0.9@3"), Place::Instead);
        assert_eq!(all(both.iter()), ["10.0.0.9@3", "10.0.0.1@2", "10.0.0.3@4"]);
        // What was read already is told once more.
        both.add(to("10.0.0.1@2"), Place::First);
        both.remove(&to("10.0.0.9@3"));
        assert_eq!(all(both.iter()), ["10.0.0.1@2", "10.0.0.3@4"]);
    }

    #[test]
    fn likes_of_ipv6_with_gateways_are_one_route_whose_ways_go_one_by_one() {
        let to = |ways: &[&str]| route("2001:db8::", ways);
        let steps = [
            (Place::First, to(&["fe80::1@2"])),
            (Place::First, to(&["@2"])),
            (Place::First, to(&["@3"])),
            (Place::Last, to(&["fe80::9@3", "fe80::1@2"])),
        ];
        let mut both = routes(&steps);
        assert_eq!(all(both.iter()), ["fe80::9@3 fe80::1@2", "@2", "@3"]);
        both.remove(&to(&["fe80::1@2"]));
        assert_eq!(all(both.iter()), ["fe80::9@3", "@2", "@3"]);
        both.add(to(&["fe80::7@2"]), Place::Instead);
        both.remove(&to(&["@2"]));
        assert_eq!(all(both.iter()), ["fe80::7@2", "@3"]);
        both.remove(&to(&["fe80::7@2"]));
        assert_eq!(all(both.iter()), ["@3"]);
    }

    #[test]
    fn what_comes_before_its_likes_takes_them_out_and_sets_them_behind_itself() {
        let to = |way| (Place::Last, route("0.0.0.0", &[way]));
        let (a, b, c) = (to("10.0.0.1@2"), to("10.0.0.2@3"), to("10.0.0.3@4"));
        let cases: [(&[_], &[_], &[&str], &[&str]); 5] = [
            (&[&a, &b], &[&a, &b], &[], &[]),
            (&[&a, &b], &[&a, &b, &c], &[], &["10.0.0.3@4"]),
            (&[&a], &[&b, &a], &["10.0.0.1@2"], &["10.0.0.2@3", "10.0.0.1@2"]),
            (&[&a, &b, &c], &[&a, &c], &["10.0.0.2@3"], &[]),
            (&[&a, &b], &[], &["10.0.0.1@2", "10.0.0.2@3"], &[]),
        ];
        let of = |some: &[&(Place, Route)]| {
            routes(&some.iter().map(|it| (*it).clone()).collect::<Vec<_>>())
        };
        for (before, after, gone, come) in cases {
            let (before, after) = (of(before), of(after));
            let changes = after.changes_since(&before, |_| true, |_| false);
            assert_eq!((all(changes.0), all(changes.1)), (strings(gone), strings(come)));
        }
        // A link took its route along.
        let (before, after) = (of(&[&a, &b]), of(&[&b]));
        let changes = after.changes_since(&before, |route| !route.uses(2), |_| false);
        assert_eq!((changes.0.len(), changes.1.len()), (0, 0));
        // One that may be lost would come back behind what it is to be before.
        let before = of(&[&a, &b, &c]);
        let changes = before.changes_since(&before, |_| true, |route| route.uses(3));
        let again = strings(&["10.0.0.2@3", "10.0.0.3@4"]);
        assert_eq!((all(changes.0), all(changes.1)), (again.clone(), again));
    }

    #[test]
    fn a_way_that_is_dead_is_left_out_of_several() {
        let both = route("0.0.0.0", &["192.0.2.1@2", "192.0.2.2@3"]);
        let direct = |link: &str| route("192.0.2.2", &[link]);
        // Which links are up; what is reached; what is left of both ways.
        let cases: [(&[u32], &[Route], &str); 5] = [
            (&[2, 3], &[direct("@3")], "192.0.2.2@3"),
            (&[2, 3], &[route("192.0.2.1", &["@2"]), direct("@3")], "192.0.2.1@2 192.0.2.2@3"),
            (&[2], &[route("192.0.2.1", &["@2"]), direct("@3")], "192.0.2.1@2"),
            // By which link it is reached matters; and of none at all something is told.
            (&[2, 3], &[direct("@2")], "192.0.2.1@2 192.0.2.2@3"),
            (&[], &[direct("@3")], "192.0.2.1@2 192.0.2.2@3"),
        ];
        for (up, reached, left) in cases {
            let mut routes = routes(&[(Place::Last, both.clone())]);
            reached.iter().for_each(|route| routes.add(route.clone(), Place::Last));
            routes.leave_dead_ways_out(|link| up.contains(&link));
            assert_eq!(all(routes.iter().take(1)), [left]);
        }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}
