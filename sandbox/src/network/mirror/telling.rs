//! What the guest is told, and what it says to that.
//!
//! A link that the guest could not set up is told again with whatever happens next; one whose card has no device there yet also
//! when the guest says that it has one. Neither keeps another link from being told.

use std::{collections::BTreeMap, mem};

use futures_util::{FutureExt, future::BoxFuture, stream::FuturesUnordered};
use kata_protocol::agent as wire;

use super::{Mirror, Passed};
use crate::{
    agent::{Agent, AgentError, presentable},
    network::view::{CardAddress, View, format_mac},
};

/// Of what a guest could not do so much goes into the log at once.
const MOST_TOLD: usize = 8;

/// Answers to come: of which card, and whether the guest has it now.
pub(super) type Arrivals = FuturesUnordered<Arrival>;

/// One of them.
type Arrival = BoxFuture<'static, (CardAddress, Result<bool, AgentError>)>;

impl Mirror {
    /// Tells the guest what is new. Of cards that it has no device for yet, what it will say of them comes back.
    pub(super) async fn tell(&mut self, agent: &Agent) -> Result<Vec<Arrival>, AgentError> {
        let Some((now, mut change)) = self.news() else { return Ok(Vec::new()) };
        self.sysctls.add(&self.wiring.namespace, &mut change).await;
        let answer = agent.update_network(&change).await?;
        for why in answer.others.iter().take(MOST_TOLD) {
            tracing::warn!(why = presentable(why), "change the guest's network");
        }
        self.told = now;
        let absent = take_in(&mut self.passed, &mut self.told, &answer.links);
        self.explain_others();
        Ok(absent.into_iter().map(|card| arrival(agent.clone(), card).boxed()).collect())
    }

    /// What the guest said of a card.
    pub(super) fn arrived(&self, card: CardAddress, arrived: Result<bool, AgentError>) {
        let passed = self.passed.values().find(|passed| passed.card.address == card);
        let Some(link) = passed.map(|passed| &passed.wired.name) else { return };
        match arrived {
            Ok(true) => tracing::debug!(link, "the guest has the card"),
            Ok(false) => tracing::warn!(link, "a link is not in the guest: its card does not come"),
            Err(error) => tracing::warn!(link, %error, "await a card in the guest"),
        }
    }

    /// What the guest has to be told to be where the namespace is, and what it has then.
    pub(super) fn news(&self) -> Option<(View, wire::NetworkChange)> {
        let cards = self.passed.iter().map(|(index, passed)| (*index, passed.card.address));
        let now = View::of(&self.model, &cards.collect());
        let change = now.change_since(&self.told)?;
        Some((now, change))
    }
}

/// Notes which links the guest has, and puts the others in doubt, so that they are told again with the next change, or when their
/// card has come: of cards that the guest has not, and was not asked to await, the addresses come back.
fn take_in(
    passed: &mut BTreeMap<u32, Passed>,
    told: &mut View,
    failures: &[wire::LinkFailure],
) -> Vec<CardAddress> {
    let mut absent = Vec::new();
    for (index, passed) in passed {
        let card = format_mac(&passed.card.address);
        let Some(failure) = failures.iter().find(|failure| failure.card == card) else {
            passed.card.new = false;
            passed.refused = None;
            continue;
        };
        told.doubt(*index);
        let why = presentable(&failure.reason);
        if !failure.absent && passed.refused.as_ref() != Some(&why) {
            tracing::warn!(link = passed.wired.name, why, "a link is not in the guest");
        }
        passed.refused = Some(why);
        if failure.absent && !mem::replace(&mut passed.awaited, true) {
            absent.push(passed.card.address);
        }
    }
    absent
}

/// Waits until the guest has a card.
async fn arrival(agent: Agent, card: CardAddress) -> (CardAddress, Result<bool, AgentError>) {
    let request =
        wire::AwaitCardRequest { card: format_mac(&card), ..wire::AwaitCardRequest::default() };
    (card, agent.await_card(&request).await.map(|answer| answer.there))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kata_protocol::agent::LinkFailure;

    use super::{CardAddress, Passed, View, take_in};
    use crate::network::{
        card::{Card, Wired},
        model::{Link, Model},
    };

    const ADDRESSES: [CardAddress; 3] =
        [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];

    fn passed(address: CardAddress) -> Passed {
        let card = Card { address, tap: 100, tap_name: "kata0".into(), plugged: None, new: true };
        let wired = Wired { link: 1, name: "net1".into(), own_qdisc: true, limited: false };
        Passed::new(card, wired, 1500, None)
    }

    fn view() -> View {
        let link = Link::veth("net");
        let links = (0..3).map(|index| (index, link.clone())).collect();
        View::of(&Model { links, ..Model::default() }, &(0..3).zip(ADDRESSES).collect())
    }

    fn failure(card: &str, absent: bool) -> LinkFailure {
        LinkFailure { card: card.into(), absent, reason: "so".into(), ..LinkFailure::default() }
    }

    #[test]
    fn what_is_not_there_is_told_again_and_awaited_once() {
        let mut links: BTreeMap<u32, Passed> = (0..3).zip(ADDRESSES.map(passed)).collect();
        let failures = [
            failure("02:00:00:00:00:02", true),
            failure("02:00:00:00:00:03", false),
            failure("nobody's", true),
        ];
        let (now, mut told) = (view(), view());
        assert_eq!(take_in(&mut links, &mut told, &failures), [ADDRESSES[1]]);
        let again: Vec<_> = now.change_since(&told).unwrap().links;
        let again: Vec<_> = again.iter().map(|link| link.card.as_str()).collect();
        assert_eq!(again, ["02:00:00:00:00:02", "02:00:00:00:00:03"]);
        let refused = links.values().map(|passed| (passed.refused.is_some(), passed.card.new));
        assert_eq!(refused.collect::<Vec<_>>(), [(false, false), (true, true), (true, true)]);
        // A guest that says it again and again makes no work.
        told = view();
        assert!(take_in(&mut links, &mut told, &failures).is_empty());
        told = view();
        assert!(take_in(&mut links, &mut told, &[]).is_empty());
        assert_eq!(now.change_since(&told), None);
        assert!(links.values().all(|passed| passed.refused.is_none()));
    }
}
