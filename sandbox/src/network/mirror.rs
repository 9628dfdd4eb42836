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
//! A mirror is owned by one task, so nothing is locked; it ends with its sandbox. Of a guest that does not answer it gives nothing up:
//! what happens meanwhile waits, or is lost and dumped.

mod sysctls;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    os::fd::OwnedFd,
    time::Duration,
};

use futures_util::StreamExt;
use kata_config::NetworkModel;
use kata_protocol::agent as wire;
use kata_sys::causes::chain;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use self::{sysctls::Sysctls, telling::Arrivals};
use super::{
    NetworkError, Nic,
    card::{Card, Wired, Wiring},
    dump::{Reader, Reading},
    model::{Link, Model, Passage},
    monitor::{Burst, Monitor},
    view::{CardAddress, View, format_mac},
};
use crate::{
    agent::{Agent, AgentError},
    step::Step,
    vm::Ports,
};

/// The key that says how many cards wait for links.
const SPARES_KEY: &str = "network.spare_nics";

/// The key that says how frames get to a card.
const MODEL_KEY: &str = "network.model";

/// Cards that a guest may let go of unasked before their link gets no more of them.
const MOST_LOST: u32 = 4;

/// Until a namespace is read again that could not be read, or changed all the time.
const REST: Duration = Duration::from_secs(5);

/// A link with its card.
#[derive(Debug)]
struct Passed {
    card: Card,
    wired: Wired,
    mtu: u32,
    /// What makes the link take in frames to all groups, where it would not.
    _groups: Option<OwnedFd>,
    /// Why the guest has no such link, though it was told.
    refused: Option<String>,
    /// Whether the guest was asked to say when it has the card: once, for it may say anything.
    awaited: bool,
}

impl Passed {
    fn new(card: Card, wired: Wired, mtu: u32, groups: Option<OwnedFd>) -> Self {
        Self { card, wired, mtu, _groups: groups, refused: None, awaited: false }
    }
}

/// Cards that come and go while the VM runs.
#[derive(Debug, Default)]
struct Hotplug {
    /// Of cards without a link so many stay.
    keep: usize,
    /// Those that the guest has to let go of, by their taps; ours until they are gone.
    leaving: BTreeMap<u32, CardAddress>,
    /// How many cards of a link the guest has let go of unasked.
    lost: BTreeMap<u32, u32>,
    /// The link that a card could not be connected with, by the card's tap: it may be gone already.
    unconnected: BTreeMap<u32, u32>,
}

/// The guest's counterpart of a namespace.
pub struct Mirror {
    wiring: Wiring,
    monitor: Monitor,
    reader: Reader,
    model: Model,
    /// Events were lost that no reading has made up for yet: when the namespace is to be read again.
    stale: Option<Instant>,
    passed: BTreeMap<u32, Passed>,
    spares: Vec<Card>,
    /// Links that have no card although they should, with the reason; told once.
    without: BTreeMap<u32, String>,
    /// Links that a card could not be had for or connected with, as they were then, with the reason.
    failed: BTreeMap<u32, (Link, String)>,
    hotplug: Hotplug,
    told: View,
    sysctls: Sysctls,
    note: watch::Sender<String>,
}

/// What the VM is made with.
#[derive(Debug, Default)]
pub struct Attached {
    /// One for each link, then the spares.
    pub nics: Vec<Nic>,
    /// For the guest's first request.
    pub change: wire::NetworkChange,
}

impl Mirror {
    pub(super) fn new(
        wiring: Wiring,
        monitor: Monitor,
        reader: Reader,
        note: watch::Sender<String>,
    ) -> Self {
        Self {
            wiring,
            monitor,
            reader,
            model: Model::default(),
            stale: None,
            passed: BTreeMap::new(),
            spares: Vec::new(),
            without: BTreeMap::new(),
            failed: BTreeMap::new(),
            hotplug: Hotplug::default(),
            told: View::of_a_new_namespace(),
            sysctls: Sysctls::default(),
            note,
        }
    }

    /// Gives each link a card, and makes as many more as `spares` says for the number of links.
    pub(super) async fn attach(
        &mut self,
        spares: impl FnOnce(usize) -> usize,
    ) -> Result<Attached, NetworkError> {
        self.wiring.steps.enter(Step::ScanNetwork)?;
        self.read().await?;
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
            let groups = self.wiring.open_to_groups(*index, link);
            self.passed.insert(*index, Passed::new(card, wired, link.mtu, groups));
        }
        for _ in 0..spares(passing.len()) {
            let (card, nic) = self.wiring.make_card(None, &mut taken).await?;
            attached.nics.push(nic);
            attached.change.spare_cards.push(format_mac(&card.address));
            self.spares.push(card);
        }
        self.hotplug.keep = self.spares.len();
        self.explain_others();
        if let Some((now, change)) = self.news() {
            self.told = now;
            let spare_cards = std::mem::take(&mut attached.change.spare_cards);
            attached.change = wire::NetworkChange { spare_cards, ..change };
        }
        self.begin_to_read_sysctls(&attached.change)?;
        Ok(attached)
    }

    /// Follows the namespace until the guest is lost.
    pub(crate) async fn follow(mut self, agent: Agent, ports: Ports) {
        let mut freed = ports.freed();
        let mut arrivals = Arrivals::new();
        loop {
            let burst = tokio::select! {
                biased;
                burst = self.hear() => burst,
                // It may be for a link that has found none, or has lost its card.
                Ok(()) = freed.changed() => Ok(Burst::Messages(Vec::new())),
                Some((card, arrived)) = arrivals.next() => {
                    self.arrived(card, arrived);
                    Ok(Burst::Messages(Vec::new()))
                }
            };
            let burst = match burst {
                Ok(burst) => burst,
                Err(error) => {
                    tracing::error!(%error, "hear of the network namespace: the guest's links stay as they are");
                    return;
                }
            };
            if let Err(error) = self.take(burst, &ports).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "follow the network namespace"
                );
            }
            match self.tell(&agent).await {
                Ok(absent) => {
                    arrivals.extend(absent);
                }
                Err(AgentError::Lost { .. }) => return,
                // It is told again with whatever happens next.
                Err(error) => tracing::warn!(%error, "change the guest's network"),
            }
            self.unplug_surplus(&ports).await;
        }
    }

    /// What happens next; nothing, when it is time to read the namespace again.
    async fn hear(&mut self) -> io::Result<Burst> {
        match self.stale {
            Some(due) => {
                let nothing = Ok(Burst::Messages(Vec::new()));
                timeout_at(due, self.monitor.next()).await.unwrap_or(nothing)
            }
            None => self.monitor.next().await,
        }
    }

    /// Reads the namespace; of one that changes all the time what is known already is better than what may have holes.
    async fn read(&mut self) -> Result<(), NetworkError> {
        self.stale = Some(Instant::now() + REST);
        match self.reader.read().await? {
            Reading::Whole(model) => (self.model, self.stale) = (model, None),
            Reading::Blurred(model) if self.model.links.is_empty() => self.model = model,
            Reading::Blurred(_) => {
                tracing::debug!("the network namespace changed whenever it was read");
            }
        }
        Ok(())
    }

    async fn take(&mut self, burst: Burst, ports: &Ports) -> Result<(), NetworkError> {
        match burst {
            Burst::Messages(messages) => {
                for (message, place) in &messages {
                    self.model.apply(message, *place);
                }
            }
            Burst::Lost => {
                tracing::debug!("events of the network namespace were lost, so it is read again");
                self.stale = Some(Instant::now());
            }
        }
        if self.stale.is_some_and(|due| due <= Instant::now()) {
            self.read().await?;
        }
        self.failed.retain(|index, _| self.model.links.contains_key(index));
        self.hotplug.leaving.retain(|tap, _| self.model.links.contains_key(tap));
        self.hotplug.lost.retain(|index, _| self.model.links.contains_key(index));
        self.hotplug.unconnected.retain(|_, index| self.model.links.contains_key(index));
        self.lose_cards(ports).await;
        self.free_cards().await;
        self.give_cards(ports).await;
        Ok(())
    }

    /// Lets cards be that the guest has let go of although nobody has asked it to; their links are without one then.
    async fn lose_cards(&mut self, ports: &Ports) {
        let lost = |card: &Card| card.plugged.is_some_and(|plugged| !ports.has(plugged));
        for card in self.spares.extract_if(.., |card| lost(card)) {
            // That was why: the link is tried again, with another one.
            if let Some(index) = self.hotplug.unconnected.remove(&card.tap) {
                self.failed.remove(&index);
                *self.hotplug.lost.entry(index).or_default() += 1;
            }
        }
        let links = self.passed.iter().filter(|(_, passed)| lost(&passed.card));
        for index in links.map(|(index, _)| *index).collect::<Vec<_>>() {
            if let Some(passed) = self.passed.remove(&index) {
                let link = &passed.wired.name;
                tracing::warn!(link, "the guest has let go of a card that nobody has asked for");
                *self.hotplug.lost.entry(index).or_default() += 1;
                self.told.doubt(index);
                self.wiring.disconnect(&passed.wired).await;
            }
        }
    }

    /// Takes the cards back from links that are gone, or have become another one's: ports of a bridge, say.
    async fn free_cards(&mut self) {
        let passing: BTreeSet<u32> = self.passing().map(|(index, _)| index).collect();
        let gone = self.passed.keys().filter(|index| !passing.contains(index));
        for index in gone.copied().collect::<Vec<_>>() {
            if let Some(passed) = self.passed.remove(&index) {
                if self.model.links.contains_key(&index) {
                    self.wiring.disconnect(&passed.wired).await;
                }
                // It may serve one that has found none.
                self.failed.clear();
                match self.wiring.clear(&passed.card).await {
                    Ok(()) => self.spares.push(passed.card),
                    // It may still lead to that link, and so to nobody else.
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn Error, "make a card a spare again");
                    }
                }
            }
        }
    }

    /// Gives cards to links that came, and lets taps follow the MTU of the others.
    async fn give_cards(&mut self, ports: &Ports) {
        let passing: Vec<(u32, Link)> = self.passing().map(|(i, link)| (i, link.clone())).collect();
        for (index, link) in passing {
            if let Some(passed) = self.passed.get_mut(&index) {
                if std::mem::replace(&mut passed.mtu, link.mtu) != link.mtu
                    && let Err(error) = self.wiring.set_tap(&passed.card, link.mtu, true).await
                {
                    // A veth's may be more than any tap's. That keeps no other link outside.
                    tracing::warn!(link = link.name, error = &error as &dyn Error, "follow an MTU");
                }
                continue;
            }
            // What has failed is tried again when the link is another one: our own work on the tap is told, too.
            if self.failed.get(&index).is_some_and(|(tried, _)| *tried == link) {
                continue;
            }
            match self.give_card(index, &link, ports).await {
                Ok(()) => drop(self.failed.remove(&index)),
                Err(error) => drop(self.failed.insert(index, (link, chain(&error)))),
            }
        }
        self.explain_others();
    }

    /// Gives a link a card if there is one.
    async fn give_card(
        &mut self,
        index: u32,
        link: &Link,
        ports: &Ports,
    ) -> Result<(), NetworkError> {
        if self.hotplug.lost.get(&index).is_some_and(|times| *times >= MOST_LOST) {
            return Err(NetworkError::LetGo(MOST_LOST));
        }
        // Of a card that is added for nothing the guest would see something.
        self.wiring.admit(index, link).await?;
        let Some(card) = self.card_for(link, ports).await? else { return Ok(()) };
        match self.wiring.connect(index, link, &card).await {
            Ok(wired) => {
                self.hotplug.unconnected.remove(&card.tap);
                let groups = self.wiring.open_to_groups(index, link);
                self.passed.insert(index, Passed::new(card, wired, link.mtu, groups));
                Ok(())
            }
            Err(error) => {
                self.hotplug.unconnected.insert(card.tap, index);
                // The link may have gone again meanwhile; the card is as good as before.
                if let Err(error) = self.wiring.clear(&card).await {
                    tracing::warn!(error = &error as &dyn Error, "make a card a spare again");
                }
                self.spares.push(card);
                Err(error)
            }
        }
    }

    /// A card that waits, or else one that is added to the VM; none where nothing can be added.
    async fn card_for(&mut self, link: &Link, ports: &Ports) -> Result<Option<Card>, NetworkError> {
        if let Some(card) = self.spares.pop() {
            return Ok(Some(card));
        }
        // Asked beforehand: a tap that is made for nothing would be an event, and that the next attempt.
        if !ports.has_room() {
            return Ok(None);
        }
        // The guest knows a card by its address, also one that it is about to let go of.
        let passed = self.passed.values().map(|passed| passed.card.address);
        let mut taken = passed.chain(self.hotplug.leaving.values().copied()).collect();
        let (mut card, nic) = self.wiring.make_card(Some(link), &mut taken).await?;
        self.wiring.steps.enter(Step::PlugCard)?;
        // Whatever becomes of it, its tap is ours until it is gone.
        self.hotplug.leaving.insert(card.tap, card.address);
        let Some(plugged) = ports.plug(nic).await.map_err(NetworkError::Plug)? else {
            return Ok(None);
        };
        self.hotplug.leaving.remove(&card.tap);
        card.plugged = Some(plugged);
        card.new = true;
        Ok(Some(card))
    }

    /// Takes cards out that are more than those which waited at first, and any that the guest was never told of; one after the
    /// other, since the more of them leave at once the more a guest mistakes (see [`kata_hypervisor::qemu`]), and the
    /// others may serve a link that comes meanwhile.
    async fn unplug_surplus(&mut self, ports: &Ports) {
        if !self.hotplug.leaving.is_empty() {
            return;
        }
        let surplus = self.spares.len() > self.hotplug.keep;
        let leaves = |card: &Card| card.plugged.is_some() && (card.new || surplus);
        let Some(place) = self.spares.iter().position(leaves) else { return };
        let card = self.spares.remove(place);
        let Some(plugged) = card.plugged else { return };
        let unplugged = match self.wiring.steps.enter(Step::UnplugCard) {
            Ok(()) => ports.unplug(plugged).await.map_err(NetworkError::Plug),
            Err(fault) => Err(fault.into()),
        };
        match unplugged {
            Ok(()) => drop(self.hotplug.leaving.insert(card.tap, card.address)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "take a card out of the VM");
                self.spares.push(card);
            }
        }
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
        let mut taps: BTreeSet<u32> = cards.map(|card| card.tap).collect();
        taps.extend(self.hotplug.leaving.keys());
        let links = self.model.links.iter().map(|(index, link)| (*index, link));
        links.filter(move |(index, _)| !taps.contains(index))
    }

    /// Says of each link that is not in the guest why, once, and notes how all of them are passed.
    fn explain_others(&mut self) {
        let mut without = BTreeMap::new();
        let mut notes = Vec::new();
        for (index, link) in self.others() {
            if let Some(passed) = self.passed.get(&index) {
                let way = self.wiring.way(&link.passage);
                let refused =
                    passed.refused.iter().map(|why| format!(", but not in the guest: {why}"));
                notes.push(format!(
                    "{} ({}): {way}{}",
                    link.name,
                    link.kind,
                    refused.collect::<String>()
                ));
                continue;
            }
            let why = match self.model.passage(link) {
                Passage::None => continue,
                _ if self.failed.contains_key(&index) => {
                    self.failed.get(&index).map(|(_, why)| why.clone()).unwrap_or_default()
                }
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
}
