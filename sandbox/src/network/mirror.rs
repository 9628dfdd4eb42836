//! Keeps the guest's network at the namespace's.
//!
//! ```text
//! attach ──► attached ── follow ─► following ─┬─ burst ─► model ─► cards ─► guest ─┐
//!  dump        │                      ▲       └────────────────────────────────────┤
//!              └─ first change        └────────────────────────────────────────────┘
//! ```
//!
//! *Attached*: each link has a card, the VMM has their taps, and the guest will be told with its first request. *Following*:
//! whatever happens to the namespace goes through the model, gives or takes cards, and reaches the guest as a difference.
//! A mirror is owned by one task, so nothing is locked; it ends with its sandbox.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use kata_config::NetworkModel;
use kata_protocol::agent as wire;
use rtnetlink::{IpVersion, RouteMessageBuilder, packet_route::RouteNetlinkMessage};
use tokio::sync::watch;

use super::{
    NetworkError, Nic,
    card::{Card, Wired, Wiring},
    model::{Link, Model, Passage},
    monitor::{Burst, Monitor},
    view::{View, format_mac},
};
use crate::{
    agent::{Agent, AgentError},
    step::Step,
};

/// The key that says how many cards wait for links.
const SPARES_KEY: &str = "network.spare_nics";

/// The key that says how frames get to a card.
const MODEL_KEY: &str = "network.model";

/// A link with its card.
#[derive(Debug)]
struct Passed {
    card: Card,
    wired: Wired,
    mtu: u32,
}

/// The guest's counterpart of a namespace.
pub struct Mirror {
    wiring: Wiring,
    monitor: Monitor,
    model: Model,
    passed: BTreeMap<u32, Passed>,
    spares: Vec<Card>,
    /// Links that have no card although they should, with the reason; told once.
    without: BTreeMap<u32, String>,
    told: View,
    note: watch::Sender<String>,
}

/// What the VM is made with.
#[derive(Debug, Default)]
pub struct Attached {
    /// One for each link, then the spares.
    pub nics: Vec<Nic>,
    /// For the guest's first request.
    pub change: wire::NetworkChange,
    /// Kernel parameters that were set in the namespace, by their paths below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
}

impl Mirror {
    pub(super) fn new(wiring: Wiring, monitor: Monitor, note: watch::Sender<String>) -> Self {
        Self {
            wiring,
            monitor,
            model: Model::default(),
            passed: BTreeMap::new(),
            spares: Vec::new(),
            without: BTreeMap::new(),
            told: View::of_a_new_namespace(),
            note,
        }
    }

    /// Gives each link a card, and makes as many more as `spares` says for the number of links.
    pub(super) async fn attach(
        &mut self,
        spares: impl FnOnce(usize) -> usize,
    ) -> Result<Attached, NetworkError> {
        self.wiring.check()?;
        self.wiring.steps.enter(Step::ScanNetwork)?;
        self.model = self.dump().await?;
        let attached = self.make_cards(spares).await;
        if attached.is_err() {
            for passed in self.passed.values() {
                self.wiring.disconnect(&passed.wired).await;
            }
        }
        attached
    }

    async fn make_cards(
        &mut self,
        spares: impl FnOnce(usize) -> usize,
    ) -> Result<Attached, NetworkError> {
        let mut attached = Attached::default();
        let mut taken = BTreeSet::new();
        let passing: Vec<(u32, Link)> = self.passing().map(|(i, link)| (i, link.clone())).collect();
        for (index, link) in &passing {
            let (card, nic) = self.wiring.make_card(Some(link), &mut taken).await?;
            attached.nics.push(nic);
            let wired = self.wiring.connect(*index, link, &card).await?;
            self.passed.insert(*index, Passed { card, wired, mtu: link.mtu });
        }
        for _ in 0..spares(passing.len()) {
            let (card, nic) = self.wiring.make_card(None, &mut taken).await?;
            attached.nics.push(nic);
            attached.change.spare_cards.push(format_mac(&card.address));
            self.spares.push(card);
        }
        self.explain_others();
        if let Some(change) = self.tell() {
            let spare_cards = std::mem::take(&mut attached.change.spare_cards);
            attached.change = wire::NetworkChange { spare_cards, ..change };
        }
        Ok(attached)
    }

    /// Follows the namespace until the guest is lost.
    pub(crate) async fn follow(mut self, agent: Agent) {
        loop {
            let burst = match self.monitor.next().await {
                Ok(burst) => burst,
                Err(error) => {
                    tracing::error!(%error, "hear of the network namespace: the guest's links stay as they are");
                    return;
                }
            };
            if let Err(error) = self.take(burst).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "follow the network namespace"
                );
            }
            let Some(change) = self.tell() else { continue };
            match agent.update_network(&change).await {
                Ok(_) => {}
                Err(AgentError::Lost { .. }) => return,
                Err(error) => tracing::warn!(%error, "change the guest's network"),
            }
        }
    }

    async fn take(&mut self, burst: Burst) -> Result<(), NetworkError> {
        match burst {
            Burst::Messages(messages) => {
                for (message, replaces) in &messages {
                    self.model.apply(message, *replaces);
                }
            }
            Burst::Lost => {
                tracing::debug!("events of the network namespace were lost, so it is read again");
                self.model = self.dump().await?;
            }
        }
        self.free_cards().await?;
        self.give_cards().await
    }

    /// Takes the cards back from links that are gone.
    async fn free_cards(&mut self) -> Result<(), NetworkError> {
        let gone: Vec<u32> = self
            .passed
            .keys()
            .filter(|index| !self.model.links.contains_key(index))
            .copied()
            .collect();
        for index in gone {
            if let Some(passed) = self.passed.remove(&index) {
                self.wiring.clear(&passed.card).await?;
                self.spares.push(passed.card);
            }
        }
        Ok(())
    }

    /// Gives cards to links that came, and lets taps follow the MTU of the others.
    async fn give_cards(&mut self) -> Result<(), NetworkError> {
        let passing: Vec<(u32, Link)> = self.passing().map(|(i, link)| (i, link.clone())).collect();
        for (index, link) in passing {
            if let Some(passed) = self.passed.get_mut(&index) {
                if passed.mtu != link.mtu {
                    self.wiring.set_tap(&passed.card, link.mtu, true).await?;
                    passed.mtu = link.mtu;
                }
                continue;
            }
            let Some(card) = self.spares.pop() else { continue };
            match self.wiring.connect(index, &link, &card).await {
                Ok(wired) => {
                    self.passed.insert(index, Passed { card, wired, mtu: link.mtu });
                }
                Err(error) => {
                    // It may have gone again meanwhile; the card is as good as before.
                    self.wiring.clear(&card).await?;
                    self.spares.push(card);
                    return Err(error);
                }
            }
        }
        self.explain_others();
        Ok(())
    }

    /// Links whose frames can get into the guest; the taps of this sandbox are none.
    fn passing(&self) -> impl Iterator<Item = (u32, &Link)> {
        self.others().filter(|(_, link)| match self.model.passage(link) {
            Passage::Frames => true,
            Passage::Packets | Passage::Unaddressed => self.wiring.model != NetworkModel::U32,
            Passage::None | Passage::Refused(_) => false,
        })
    }

    fn others(&self) -> impl Iterator<Item = (u32, &Link)> {
        let cards = self.passed.values().map(|passed| &passed.card).chain(&self.spares);
        let taps: BTreeSet<u32> = cards.map(|card| card.tap).collect();
        let links = self.model.links.iter().map(|(index, link)| (*index, link));
        links.filter(move |(index, _)| !taps.contains(index))
    }

    /// Says of each link that is not in the guest why, once, and notes how all of them are passed.
    fn explain_others(&mut self) {
        let mut without = BTreeMap::new();
        let mut notes = Vec::new();
        for (index, link) in self.others() {
            let why = match self.model.passage(link) {
                _ if self.passed.contains_key(&index) => {
                    let way = self.wiring.way(&link.passage);
                    notes.push(format!("{} ({}): {way}", link.name, link.kind));
                    continue;
                }
                Passage::None => continue,
                Passage::Packets if self.wiring.model == NetworkModel::U32 => format!(
                    "its packets have no header of Ethernet's, which {MODEL_KEY}=u32 can't add"
                ),
                Passage::Unaddressed if self.wiring.model == NetworkModel::U32 => {
                    format!("its frames have no addresses, which {MODEL_KEY}=u32 can't write")
                }
                Passage::Frames | Passage::Unaddressed | Passage::Packets => {
                    format!("no card is left; raise {SPARES_KEY}")
                }
                Passage::Refused(why) => why,
            };
            notes.push(format!("{} ({}): not in the guest: {why}", link.name, link.kind));
            if !self.without.contains_key(&index) {
                tracing::warn!(link = link.name, why, "a link is not in the guest");
            }
            without.insert(index, why);
        }
        self.without = without;
        let note = if notes.is_empty() { "loopback alone".into() } else { notes.join("; ") };
        self.note.send_if_modified(|before| std::mem::replace(before, note) != *before);
    }

    /// What the guest has to be told to be where the namespace is.
    fn tell(&mut self) -> Option<wire::NetworkChange> {
        let cards = self.passed.iter().map(|(index, passed)| (*index, passed.card.address));
        let now = View::of(&self.model, &cards.collect());
        let change = now.change_since(&self.told);
        self.told = now;
        change
    }

    /// The namespace as it is now.
    async fn dump(&self) -> Result<Model, NetworkError> {
        let failed = |what| move |source| NetworkError::List { what, source };
        let handle = &self.wiring.handle;
        let mut model = Model::default();
        let mut take = |message| model.apply(&message, false);
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("links"))? {
            take(RouteNetlinkMessage::NewLink(link));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(failed("addresses"))? {
            take(RouteNetlinkMessage::NewAddress(address));
        }
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for all in [v4, v6] {
            let mut routes = handle.route().get(all).execute();
            while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
                take(RouteNetlinkMessage::NewRoute(route));
            }
        }
        for family in [IpVersion::V4, IpVersion::V6] {
            let mut rules = handle.rule().get(family).execute();
            while let Some(rule) = rules.try_next().await.map_err(failed("rules"))? {
                take(RouteNetlinkMessage::NewRule(rule));
            }
        }
        let mut neighbours = handle.neighbours().get().execute();
        while let Some(neighbour) = neighbours.try_next().await.map_err(failed("neighbours"))? {
            take(RouteNetlinkMessage::NewNeighbour(neighbour));
        }
        Ok(model)
    }
}
