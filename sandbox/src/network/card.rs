//! Cards: taps beside the links, and the redirects between the two.

use std::{collections::BTreeSet, os::fd::OwnedFd, sync::Arc};

use futures_util::TryStreamExt;
use kata_config::NetworkModel;
use kata_hypervisor::qemu::Plugged;
use kata_sys::{
    bpf::{self, ProgramKind},
    tap,
};
use rtnetlink::{Error, Handle, LinkUnspec, packet_route::link::LinkAttribute};

use super::{
    Namespace, NetworkError, Nic, enter,
    guard::Claim,
    model::{Link, Passage},
    parse::CARD_ALIAS,
    program::{self, Change},
    rate::{self, Rates},
    redirect::{self, Hook},
    view::CardAddress,
};
use crate::{
    ledger::{Entry, Ledger},
    random,
    step::{Step, Steps},
};

/// Locally administered, and of no vendor's: what a card without a link has.
const PREFIX: [u8; 2] = [0x02, 0x6b];

/// The keys that limit what a link carries.
const INBOUND_KEY: &str = "network.inbound_kbit_s";
const OUTBOUND_KEY: &str = "network.outbound_kbit_s";

/// Kinds of links that pass on frames to the groups that the namespace itself is in, and none to the guest's.
const CHOOSY: [&str; 5] = ["macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"];

/// A link without Ethernet has no address of its.
const NONE: CardAddress = [0; 6];

/// A tap that the VMM holds.
#[derive(Debug)]
pub(super) struct Card {
    pub address: CardAddress,
    pub tap: u32,
    pub tap_name: String,
    /// It was added to the running VM, and can be taken out again.
    pub plugged: Option<Plugged>,
    /// The guest may not have seen it yet.
    pub new: bool,
}

/// A link whose frames are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wired {
    pub link: u32,
    pub name: String,
    /// Whether the qdisc was made for it.
    pub own_qdisc: bool,
    /// Whether what leaves by it is limited.
    pub limited: bool,
}

/// Changes a namespace; the only one that does.
pub(super) struct Wiring {
    pub handle: Handle,
    pub namespace: Namespace,
    pub claim: Arc<Claim>,
    pub ledger: Arc<Ledger>,
    pub steps: Arc<Steps>,
    pub model: NetworkModel,
    pub rates: Rates,
    pub queues: usize,
    pub own_sockets: bool,
}

impl Wiring {
    /// Whether a link may be connected, which is asked before a card is made for it.
    pub async fn admit(&self, index: u32, link: &Link) -> Result<(), NetworkError> {
        self.check()?;
        self.must_be_limitable(index, link).await
    }

    /// Whether the namespace may be touched.
    pub fn check(&self) -> Result<(), NetworkError> {
        self.claim.check().map_err(|source| self.namespace.refused(source))
    }

    /// Makes a card; with the address of a link if no other one has it.
    pub async fn make_card(
        &self,
        like: Option<&Link>,
        taken: &mut BTreeSet<CardAddress>,
    ) -> Result<(Card, Nic), NetworkError> {
        let address = match like.map(|link| link.mac) {
            Some(mac) if mac != NONE && taken.insert(mac) => mac,
            _ => {
                let [a, b, c, d] = random::bytes().map_err(NetworkError::Random)?;
                let mac = [PREFIX[0], PREFIX[1], a, b, c, d];
                taken.insert(mac);
                mac
            }
        };
        self.steps.enter(Step::MakeTap)?;
        let tap = enter(&self.namespace.fd, || tap::make("kata%d", self.queues))?
            .map_err(NetworkError::Tap)?;
        let failed = |source| NetworkError::SetTap { tap: tap.name.clone(), source };
        let mut found = self.handle.link().get().match_name(tap.name.clone()).execute();
        let message =
            found.try_next().await.map_err(failed)?.ok_or(Error::RequestFailed).map_err(failed)?;
        // By this it is known to be no link of the engine's, also by the next sandbox when this one has died.
        let mark = LinkUnspec::new_with_index(message.header.index)
            .append_extra_attribute(LinkAttribute::IfAlias(CARD_ALIAS.into()));
        self.handle.link().set(mark.build()).execute().await.map_err(failed)?;
        let (index, tap_name) = (message.header.index, tap.name);
        let card = Card { address, tap: index, tap_name, plugged: None, new: false };
        if let Some(rate) = self.rates.inbound {
            self.steps.enter(Step::LimitLink)?;
            let limited = rate::limit(&self.handle, card.tap, rate).await;
            limited.map_err(|source| NetworkError::Limit {
                link: card.tap_name.clone(),
                key: INBOUND_KEY,
                source,
            })?;
        }
        Ok((card, Nic { queues: tap.queues, mac: address }))
    }

    /// Redirects every frame of the link to the card and back; both ways, or none.
    pub async fn connect(
        &self,
        index: u32,
        link: &Link,
        card: &Card,
    ) -> Result<Wired, NetworkError> {
        self.must_be_limitable(index, link).await?;
        self.set_tap(card, link.mtu, true).await?;
        // Somebody may have moved in since; the tap goes with its descriptor.
        self.check()?;
        let hook = redirect::look(&self.handle, index)
            .await
            .map_err(|source| NetworkError::Hook { link: link.name.clone(), source })?;
        let wired = Wired {
            link: index,
            name: link.name.clone(),
            own_qdisc: hook != Hook::Taken,
            limited: self.rates.outbound.is_some(),
        };
        let entry = self.namespace.redirect(&wired)?;
        self.ledger.intend(&self.steps, &entry).map_err(|e| NetworkError::Ledger(Box::new(e)))?;
        let laid = self.lay(&wired, hook, link, card).await;
        if laid.is_err() {
            self.disconnect(&wired).await;
        }
        laid.map(|()| wired)
    }

    /// Lays the way that the ledger has.
    async fn lay(
        &self,
        wired: &Wired,
        hook: Hook,
        link: &Link,
        card: &Card,
    ) -> Result<(), NetworkError> {
        let index = wired.link;
        if let Some(rate) = self.rates.outbound {
            self.steps.enter(Step::LimitLink)?;
            let limited = rate::limit(&self.handle, index, rate).await;
            limited.map_err(|source| NetworkError::Limit {
                link: link.name.clone(),
                key: OUTBOUND_KEY,
                source,
            })?;
        }
        if self.rates.outbound.is_none() {
            // A sandbox that died may have left its limit, and it is nobody's any more.
            let lifted = rate::lift(&self.handle, index).await;
            lifted.map_err(|source| NetworkError::Lift { link: link.name.clone(), source })?;
        }
        self.steps.enter(Step::RedirectLink)?;
        let (into_guest, out_of_it) = match link.passage {
            Passage::Packets => (Change::Header(card.address), Change::Nothing),
            Passage::Unaddressed => (Change::Addresses(card.address), Change::Addresses(NONE)),
            _ => (Change::Nothing, Change::Nothing),
        };
        let inwards = self.program(card.tap, into_guest)?;
        let outwards = self.program(index, out_of_it)?;
        let both = [
            (index, link.name.as_str(), card.tap, card.tap_name.as_str(), hook, inwards),
            (card.tap, card.tap_name.as_str(), index, link.name.as_str(), Hook::Free, outwards),
        ];
        for (from, from_name, to, to_name, hook, program) in both {
            let added = redirect::add(&self.handle, from, to, hook, program.as_ref()).await;
            let (from, to) = (from_name.into(), to_name.into());
            added.map_err(|source| NetworkError::Redirect { from, to, source })?;
        }
        if self.own_sockets && link.passage == Passage::Frames {
            self.except(wired, card).await;
        }
        Ok(())
    }

    /// A discipline of somebody's own is not replaced.
    async fn must_be_limitable(&self, index: u32, link: &Link) -> Result<(), NetworkError> {
        if self.rates.outbound.is_none() {
            return Ok(());
        }
        let name = || link.name.clone();
        let kind = rate::others(&self.handle, index)
            .await
            .map_err(|source| NetworkError::Hook { link: name(), source })?;
        match kind {
            Some(kind) => Err(NetworkError::Queued { link: name(), kind, key: OUTBOUND_KEY }),
            None => Ok(()),
        }
    }

    /// Lets answers pass to sockets of the namespace, where the kernel can: without, all frames are the guest's.
    async fn except(&self, wired: &Wired, card: &Card) {
        let program = bpf::load(ProgramKind::Classifier, &program::own_sockets(card.tap));
        let excepted = match &program {
            Ok(program) => redirect::except(&self.handle, wired.link, program)
                .await
                .err()
                .map(|e| e.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = excepted {
            tracing::warn!(
                link = wired.name,
                error,
                "docker's resolver gets no answers from outside"
            );
        }
    }

    /// Lets frames to all groups in, for as long as the descriptor is held: which of them the guest wants is not known here.
    pub fn open_to_groups(&self, index: u32, link: &Link) -> Option<OwnedFd> {
        if !CHOOSY.contains(&link.kind.as_str()) {
            return None;
        }
        let taken = enter(&self.namespace.fd, || kata_sys::network::take_all_groups(index));
        match taken.and_then(|taken| taken.map_err(NetworkError::Groups)) {
            Ok(socket) => Some(socket),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(link = link.name, error, "multicast does not reach the guest");
                None
            }
        }
    }

    /// The program that redirects, where u32 does not.
    fn program(&self, to: u32, change: Change) -> Result<Option<OwnedFd>, NetworkError> {
        if self.model != NetworkModel::Ebpf && change == Change::Nothing {
            return Ok(None);
        }
        let instructions = program::redirect(to, change);
        let loaded = bpf::load(ProgramKind::Classifier, &instructions);
        loaded.map(Some).map_err(NetworkError::Program)
    }

    /// How a link's frames get to its card, for people.
    pub fn way(&self, passage: &Passage) -> String {
        let way = match (passage, self.model) {
            (Passage::Packets, _) => {
                "its packets redirected to a tap by eBPF, which adds a header of Ethernet's"
            }
            (Passage::Unaddressed, _) => {
                "redirected to a tap by eBPF, which writes its frames' addresses"
            }
            (_, NetworkModel::Ebpf) => "redirected to a tap by eBPF",
            _ => "redirected to a tap",
        };
        format!("{way}{}", self.rates)
    }

    /// Takes a redirect back; what fails here is in the ledger, and is tried again when the sandbox goes.
    pub async fn disconnect(&self, wired: &Wired) {
        if let Err(error) = restore(&self.handle, wired, &self.steps).await {
            tracing::warn!(link = wired.name, %error, "remove a redirect");
        }
    }

    /// Makes a card a spare again.
    pub async fn clear(&self, card: &Card) -> Result<(), NetworkError> {
        let failed = |source| NetworkError::SetTap { tap: card.tap_name.clone(), source };
        redirect::remove(&self.handle, card.tap, true).await.map_err(failed)?;
        self.set_tap(card, 1500, false).await
    }

    /// Follows the link's MTU.
    pub async fn set_tap(&self, card: &Card, mtu: u32, up: bool) -> Result<(), NetworkError> {
        let change = LinkUnspec::new_with_index(card.tap).mtu(mtu);
        let change = if up { change.up() } else { change.down() };
        let set = self.handle.link().set(change.build()).execute().await;
        set.map_err(|source| NetworkError::SetTap { tap: card.tap_name.clone(), source })
    }
}

/// Removes the redirect of a link.
pub(super) async fn restore(
    handle: &Handle,
    wired: &Wired,
    steps: &Steps,
) -> Result<(), NetworkError> {
    steps.enter(Step::RestoreLink)?;
    let failed = |source| NetworkError::Restore { link: wired.name.clone(), source };
    let lifted = match wired.limited {
        true => rate::lift(handle, wired.link).await,
        false => Ok(()),
    };
    redirect::remove(handle, wired.link, wired.own_qdisc).await.and(lifted).map_err(failed)
}

impl Namespace {
    fn redirect(&self, wired: &Wired) -> Result<Entry, NetworkError> {
        Ok(Entry::Redirect {
            namespace: self.path.clone(),
            identity: super::identity(&self.fd)?,
            link: wired.name.clone(),
            index: wired.link,
            own_qdisc: wired.own_qdisc,
            limited: wired.limited,
        })
    }
}
