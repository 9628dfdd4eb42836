//! Kernel parameters that were set in the namespace, in the guest.
//!
//! What is usual is learnt from a new namespace while the VM boots, since to make one takes longer than all else here. The kernel
//! tells of no change, so those of a link are read whenever the guest is told of that link.
//!
//! Links are read by name, a moment after they were seen: one that has got another's name in between lends it its values until the
//! guest is told of it again. What is as usual by then stays in the guest.

use std::collections::BTreeMap;

use kata_protocol::agent as wire;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Mirror;
use crate::network::{
    Namespace, NetworkError, enter, enter_new,
    sysctl::{self, Usual, Values},
};

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Sysctls {
    /// How links begin, once that is known.
    usual: Option<Usual>,
    reading: Option<JoinHandle<Result<Found, NetworkError>>>,
}

/// What was found when the VM began to boot.
#[derive(Debug)]
struct Found {
    /// Set in the namespace, by their paths below `/proc/sys`.
    set: Values,
    /// All of each link.
    links: BTreeMap<String, Values>,
    usual: Usual,
}

impl Mirror {
    /// Has them read: those of the namespace, and those of the links that the guest begins with.
    pub(super) fn begin_to_read_sysctls(
        &mut self,
        change: &wire::NetworkChange,
    ) -> Result<(), NetworkError> {
        let namespace = self.wiring.namespace.try_clone()?.fd;
        let links: Vec<String> = change.links.iter().map(|link| link.name.clone()).collect();
        let read = move || {
            let (there, links) = enter(&namespace, || (sysctl::read(), read_links(links)))?;
            let (new, usual) = enter_new(|| (sysctl::read(), Usual::read()))?;
            Ok(Found { set: sysctl::changed(there, &new), links, usual })
        };
        self.sysctls.reading = Some(spawn_blocking(read));
        Ok(())
    }

    /// Adds those of the links to the guest's first request; those of the namespace come back.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) async fn settle_sysctls(
        &mut self,
        change: &mut wire::NetworkChange,
    ) -> Result<BTreeMap<String, String>, NetworkError> {
        let Some(reading) = self.sysctls.reading.take() else { return Ok(BTreeMap::new()) };
        let Found { set, links, mut usual } =
            reading.await.map_err(|_| NetworkError::Panicked)??;
        usual.but_for(&set);
        add(change, links, &usual);
        self.sysctls.usual = Some(usual);
        Ok(set)
    }
}

impl Sysctls {
    /// Adds those of links as they are now.
    pub(super) async fn add(&self, namespace: &Namespace, change: &mut wire::NetworkChange) {
        let Some(usual) = &self.usual else { return };
        let links: Vec<String> = change.links.iter().map(|link| link.name.clone()).collect();
        if links.is_empty() {
            return;
        }
        match read_links_of(namespace, links).await {
            Ok(there) => add(change, there, usual),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "read the kernel parameters of links");
            }
        }
    }
}

async fn read_links_of(
    namespace: &Namespace,
    names: Vec<String>,
) -> Result<BTreeMap<String, Values>, NetworkError> {
    let namespace = namespace.try_clone()?.fd;
    let read = move || enter(&namespace, || read_links(names));
    spawn_blocking(read).await.map_err(|_| NetworkError::Panicked)?
}

/// In the calling thread's network namespace.
fn read_links(names: Vec<String>) -> BTreeMap<String, Values> {
    let read = |name: String| (sysctl::read_link(&name), name);
    names.into_iter().map(read).map(|(values, name)| (name, values)).collect()
}

fn add(change: &mut wire::NetworkChange, mut there: BTreeMap<String, Values>, usual: &Usual) {
    for link in &mut change.links {
        if let Some(values) = there.remove(&link.name) {
            link.sysctls = usual.changed(&link.name, values);
        }
    }
}
