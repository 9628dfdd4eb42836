//! Cards: taps beside the links, and the redirects between the two.

use std::{collections::BTreeSet, os::fd::OwnedFd, sync::Arc};

use futures_util::TryStreamExt;
use kata_config::NetworkModel;
use kata_sys::{
    bpf::{self, ProgramKind},
    tap,
};
use rtnetlink::{Error, Handle, LinkUnspec};

use super::{
    Namespace, NetworkError, Nic, enter,
    guard::Claim,
    model::{Link, Passage},
    program::{self, Change},
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

/// A link without Ethernet has no address of its.
const NONE: CardAddress = [0; 6];

/// A tap that the VMM holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub address: CardAddress,
    pub tap: u32,
    pub tap_name: String,
}

/// A link whose frames are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wired {
    pub link: u32,
    pub name: String,
    /// Whether the qdisc was made for it.
    pub own_qdisc: bool,
}

/// Changes a namespace; the only one that does.
pub(super) struct Wiring {
    pub handle: Handle,
    pub namespace: Namespace,
    pub claim: Arc<Claim>,
    pub ledger: Arc<Ledger>,
    pub steps: Arc<Steps>,
    pub model: NetworkModel,
    pub own_sockets: bool,
}

impl Wiring {
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
        let tap = enter(&self.namespace.fd, || tap::make("kata%d"))?.map_err(NetworkError::Tap)?;
        let failed = |source| NetworkError::SetTap { tap: tap.name.clone(), source };
        let mut found = self.handle.link().get().match_name(tap.name.clone()).execute();
        let message =
            found.try_next().await.map_err(failed)?.ok_or(Error::RequestFailed).map_err(failed)?;
        let card = Card { address, tap: message.header.index, tap_name: tap.name };
        Ok((card, Nic { tap: tap.fd, mac: address }))
    }

    /// Redirects every frame of the link to the card and back; both ways, or none.
    pub async fn connect(
        &self,
        index: u32,
        link: &Link,
        card: &Card,
    ) -> Result<Wired, NetworkError> {
        self.set_tap(card, link.mtu, true).await?;
        // Somebody may have moved in since; the tap goes with its descriptor.
        self.check()?;
        let hook = redirect::look(&self.handle, index)
            .await
            .map_err(|source| NetworkError::Hook { link: link.name.clone(), source })?;
        let wired = Wired { link: index, name: link.name.clone(), own_qdisc: hook != Hook::Taken };
        let entry = self.namespace.redirect(&wired)?;
        self.ledger.intend(&self.steps, &entry).map_err(|e| NetworkError::Ledger(Box::new(e)))?;
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
            if let Err(source) = added {
                self.disconnect(&wired).await;
                let (from, to) = (from_name.into(), to_name.into());
                return Err(NetworkError::Redirect { from, to, source });
            }
        }
        if self.own_sockets && link.passage == Passage::Frames {
            self.except(&wired, card).await;
        }
        Ok(wired)
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
    pub fn way(&self, passage: &Passage) -> &'static str {
        match (passage, self.model) {
            (Passage::Packets, _) => {
                "its packets redirected to a tap by eBPF, which adds a header of Ethernet's"
            }
            (Passage::Unaddressed, _) => {
                "redirected to a tap by eBPF, which writes its frames' addresses"
            }
            (_, NetworkModel::Ebpf) => "redirected to a tap by eBPF",
            _ => "redirected to a tap",
        }
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
    redirect::remove(handle, wired.link, wired.own_qdisc)
        .await
        .map_err(|source| NetworkError::Restore { link: wired.name.clone(), source })
}

impl Namespace {
    fn redirect(&self, wired: &Wired) -> Result<Entry, NetworkError> {
        Ok(Entry::Redirect {
            namespace: self.path.clone(),
            identity: super::identity(&self.fd)?,
            link: wired.name.clone(),
            index: wired.link,
            own_qdisc: wired.own_qdisc,
        })
    }
}
