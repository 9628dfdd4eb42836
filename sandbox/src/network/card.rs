//! Taps, and the redirects between links and them.

use futures_util::TryStreamExt;
use kata_sys::tap::{self, Tap};
use rtnetlink::{Error, Handle, LinkUnspec};

use super::{
    Namespace, NetworkError,
    guard::{Claim, GuardError},
    redirect::{self, Hook},
    scan::HostLink,
};
use crate::{
    ledger::{Entry, Ledger},
    step::{Step, Steps},
};

/// Changes a namespace; the only one that does.
pub(super) struct Wiring<'a> {
    pub handle: Handle,
    pub namespace: &'a Namespace,
    pub claim: &'a Claim,
    pub ledger: &'a Ledger,
    pub steps: &'a Steps,
}

/// A link whose frames are redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wired {
    pub link: u32,
    pub name: String,
    /// Whether the qdisc was made for it.
    pub own_qdisc: bool,
}

impl Wiring<'_> {
    /// Whether the namespace may be touched.
    pub fn check(&self) -> Result<(), NetworkError> {
        let refused =
            |source: GuardError| NetworkError::Guard { path: self.namespace.path.clone(), source };
        self.claim.check().map_err(refused)
    }

    /// Makes the tap of `link` and redirects every frame of the one to the other.
    pub async fn connect(&self, link: &HostLink) -> Result<(Tap, Wired), NetworkError> {
        self.steps.enter(Step::MakeTap)?;
        let tap = tap::make("kata%d").map_err(NetworkError::Tap)?;
        let tap_index = self.set_up(&tap.name, link.mtu).await?;
        // Somebody may have moved in since the namespace was claimed; the tap goes with its descriptor.
        self.check()?;
        let wired = self.redirect(link, tap_index, &tap.name).await?;
        Ok((tap, wired))
    }

    /// Both ways, or none.
    async fn redirect(
        &self,
        link: &HostLink,
        tap: u32,
        tap_name: &str,
    ) -> Result<Wired, NetworkError> {
        let hook = redirect::look(&self.handle, link.index)
            .await
            .map_err(|source| NetworkError::Hook { link: link.name.clone(), source })?;
        let wired =
            Wired { link: link.index, name: link.name.clone(), own_qdisc: hook != Hook::Taken };
        let entry = self.namespace.redirect(&wired)?;
        self.ledger.intend(self.steps, &entry).map_err(|e| NetworkError::Ledger(Box::new(e)))?;
        self.steps.enter(Step::RedirectLink)?;
        let both = [
            (link.index, link.name.as_str(), tap, tap_name, hook),
            (tap, tap_name, link.index, link.name.as_str(), Hook::Free),
        ];
        for (from, from_name, to, to_name, hook) in both {
            if let Err(source) = redirect::add(&self.handle, from, to, hook).await {
                self.disconnect(&wired).await;
                let (from, to) = (from_name.into(), to_name.into());
                return Err(NetworkError::Redirect { from, to, source });
            }
        }
        Ok(wired)
    }

    /// Takes a redirect back; what fails here is in the ledger, and is tried again when the sandbox goes.
    pub async fn disconnect(&self, wired: &Wired) {
        if let Err(error) = restore(&self.handle, wired, self.steps).await {
            tracing::warn!(link = wired.name, %error, "remove a redirect");
        }
    }

    async fn set_up(&self, name: &str, mtu: u32) -> Result<u32, NetworkError> {
        let failed = |source| NetworkError::SetTap { tap: name.to_owned(), source };
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let message =
            found.try_next().await.map_err(failed)?.ok_or(Error::RequestFailed).map_err(failed)?;
        let index = message.header.index;
        let change = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.handle.link().set(change).execute().await.map_err(failed)?;
        Ok(index)
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
