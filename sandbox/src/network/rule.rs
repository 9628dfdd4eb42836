//! Rules: which table of routes a packet goes by.
//!
//! A guest is told of them in the kernel's own form, so that a selector that nobody here has heard of gets there, too.
//! The two or three that every namespace is born with are told apart by what they do: a kernel writes them
//! down with more or fewer attributes.

use std::collections::BTreeSet;

use rtnetlink::{
    packet_core::Emitable,
    packet_route::{
        AddressFamily,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage},
    },
};

/// Families with priorities and tables, as a namespace begins.
const DEFAULTS: [(AddressFamily, u32, u8); 5] = [
    (AddressFamily::Inet, 0, 255),
    (AddressFamily::Inet, 32766, 254),
    (AddressFamily::Inet, 32767, 253),
    (AddressFamily::Inet6, 0, 255),
    (AddressFamily::Inet6, 32766, 254),
];

/// A rule as the kernel takes it: `struct fib_rule_hdr` and attributes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule(Vec<u8>);

impl Rule {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn of(message: &RuleMessage) -> Self {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        Self(bytes)
    }
}

/// The rules of a namespace in which nobody has changed any.
pub(super) fn defaults() -> BTreeSet<Rule> {
    DEFAULTS.iter().map(|default| Rule::of(&plain(default))).collect()
}

fn plain((family, priority, table): &(AddressFamily, u32, u8)) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = *family;
    message.header.table = *table;
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Table((*table).into()), RuleAttribute::Priority(*priority)];
    message
}

/// A rule that routes of IPv4 or IPv6 are chosen by.
pub(super) fn parse(message: &RuleMessage) -> Option<Rule> {
    let family = message.header.family;
    if ![AddressFamily::Inet, AddressFamily::Inet6].contains(&family) {
        return None;
    }
    let mut rule = message.clone();
    // The others say how things are, and that differs from one namespace to the other.
    rule.header.flags &= RuleFlags::Invert;
    // The kernel leaves zero out, and would choose another priority.
    if !rule.attributes.iter().any(|one| matches!(one, RuleAttribute::Priority(_))) {
        rule.attributes.push(RuleAttribute::Priority(0));
    }
    let default = DEFAULTS.iter().map(plain).find(|default| is_like(&rule, default));
    Some(Rule::of(&default.unwrap_or(rule)))
}

/// Whether a rule does what a default one does, and no more.
fn is_like(rule: &RuleMessage, default: &RuleMessage) -> bool {
    let selects_all = RuleHeader { flags: RuleFlags::empty(), ..default.header.clone() };
    let adds_nothing = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::SuppressPrefixLen(length) => *length == u32::MAX,
        RuleAttribute::Protocol(protocol) => *protocol == RouteProtocol::Kernel,
        other => default.attributes.contains(other),
    };
    rule.header == selects_all
        && default.attributes.iter().all(|one| rule.attributes.contains(one))
        && rule.attributes.iter().all(adds_nothing)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::{
        route::RouteProtocol,
        rule::{RuleAttribute, RuleFlags, RuleMessage},
    };

    use super::{DEFAULTS, Rule, defaults, parse, plain};

    /// The way in which a kernel tells of the rule of the main table.
    fn told() -> RuleMessage {
        let mut message = plain(&DEFAULTS[1]);
        message.attributes.extend([
            RuleAttribute::SuppressPrefixLen(u32::MAX),
            RuleAttribute::Protocol(RouteProtocol::Kernel),
        ]);
        message.header.flags = RuleFlags::Permanent;
        message
    }

    #[test]
    fn a_default_rule_is_known_however_it_is_told() {
        assert!(defaults().contains(&parse(&told()).unwrap()));
        let mut first = plain(&DEFAULTS[0]);
        first.attributes.retain(|one| !matches!(one, RuleAttribute::Priority(_)));
        assert_eq!(parse(&first).unwrap(), Rule::of(&plain(&DEFAULTS[0])));
    }

    #[test]
    fn a_rule_that_selects_is_none_of_the_defaults() {
        let mut marked = told();
        marked.attributes.push(RuleAttribute::FwMark(7));
        let rule = parse(&marked).unwrap();
        assert!(!defaults().contains(&rule));
        assert!(rule.bytes().len() > plain(&DEFAULTS[1]).attributes.len());
    }
}
