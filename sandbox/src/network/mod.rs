//! The links of the sandbox's network namespace, passed through to the guest.
//!
//! ```text
//! engine's side ── veth ┐ namespace ┌ tap ── VMM ── guest's eth0
//!                       └─ redirect ┘
//! ```
//!
//! Each link of the namespace gets a tap beside it; tc redirects every frame of the one to the other. The guest takes
//! over the link's name, MAC, MTU, addresses, routes and neighbours; the link keeps its own, since engines read them.
//! A tap lives as long as its descriptor. The redirect lives on a link that belongs to the engine, so it
//! stands in the ledger. What may be touched at all is decided by [`guard`], and nowhere else.

mod card;
mod error;
pub mod guard;
mod redirect;
mod scan;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use kata_protocol::agent;
use rustix::{
    fs::fstat,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use self::{
    card::{Wired, Wiring},
    guard::{Claim, GuardError, Identity},
};
use crate::{
    ledger::Ledger,
    step::{Step, Steps},
};

pub use self::error::NetworkError;

/// A network card for the VMM.
#[derive(Debug)]
pub struct Nic {
    /// Host end.
    pub tap: OwnedFd,
    /// The guest's MAC.
    pub mac: [u8; 6],
    /// Of the link.
    pub mtu: u32,
}

/// What the guest gets of a namespace.
#[derive(Debug, Default)]
pub struct Network {
    /// One for each passed-through link.
    pub nics: Vec<Nic>,
    /// How the agent sets them up.
    pub links: Vec<agent::Link>,
    /// Those that don't come by themselves with an address.
    pub routes: Vec<agent::Route>,
    /// Permanent ones.
    pub neighbours: Vec<agent::Neighbour>,
    /// To be kept as long as the redirects stand.
    pub claim: Option<Claim>,
}

/// A network namespace by descriptor, and the path at which a later process finds it.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace.
    pub fd: OwnedFd,
    /// Host path for the ledger: the engine's, or the monitor's `/proc/PID/ns/net`.
    pub path: PathBuf,
}

/// The namespace's identity while it lives.
///
/// # Errors
/// [`NetworkError::Identify`].
pub fn identity(namespace: impl AsFd) -> Result<Identity, NetworkError> {
    let stat = fstat(namespace).map_err(|e| NetworkError::Identify(e.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Reads the namespace's links as they are now and passes them through.
///
/// Blocks; the caller runs it on a thread that may.
///
/// # Errors
/// [`NetworkError`]; what was made is undone.
pub fn attach(
    namespace: &Namespace,
    ledger: &Ledger,
    steps: &Steps,
) -> Result<Network, NetworkError> {
    let refused = |source| NetworkError::Guard { path: namespace.path.clone(), source };
    let claim = Claim::take(&namespace.fd).map_err(refused)?;
    let mut network = inside(&namespace.fd, async |handle| {
        let wiring = Wiring { handle, namespace, claim: &claim, ledger, steps };
        wiring.check()?;
        let mut wired = Vec::new();
        let attached = connect_all(&wiring, &mut wired).await;
        if attached.is_err() {
            for link in &wired {
                wiring.disconnect(link).await;
            }
        }
        attached
    })?;
    network.claim = Some(claim);
    Ok(network)
}

async fn connect_all(wiring: &Wiring<'_>, wired: &mut Vec<Wired>) -> Result<Network, NetworkError> {
    wiring.steps.enter(Step::ScanNetwork)?;
    let found = scan::scan(&wiring.handle).await?;
    let mut network = found.guest;
    for link in found.links {
        let (tap, redirect) = wiring.connect(&link).await?;
        wired.push(redirect);
        network.nics.push(Nic { tap: tap.fd, mac: link.mac, mtu: link.mtu });
    }
    Ok(network)
}

/// What the ledger knows of a redirect.
#[derive(Debug)]
pub struct Redirected<'a> {
    /// Host path of the namespace.
    pub namespace: &'a Path,
    /// Another one at that path is left alone.
    pub identity: Identity,
    /// Name of the link, for people.
    pub link: &'a str,
    /// Its index.
    pub index: u32,
    /// Whether the qdisc goes too.
    pub own_qdisc: bool,
}

/// Removes the redirect of a link, if its namespace is still there and no other sandbox has it meanwhile.
///
/// # Errors
/// [`NetworkError`].
pub fn restore_link(redirected: &Redirected<'_>, steps: &Steps) -> Result<(), NetworkError> {
    let path = redirected.namespace;
    let namespace = match File::open(path) {
        Ok(file) => OwnedFd::from(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(NetworkError::Open { path: path.into(), source }),
    };
    if identity(&namespace)? != redirected.identity {
        return Ok(());
    }
    let _claim = match Claim::take(&namespace) {
        Ok(claim) => claim,
        // It has found, and replaced, what we had left.
        Err(GuardError::Claimed) => return Ok(()),
        Err(source) => return Err(NetworkError::Guard { path: path.into(), source }),
    };
    let wired = Wired {
        link: redirected.index,
        name: redirected.link.to_owned(),
        own_qdisc: redirected.own_qdisc,
    };
    inside(&namespace, async |handle| card::restore(&handle, &wired, steps).await)
}

/// Runs `work` with an rtnetlink handle on a thread of its own that has entered the namespace.
fn inside<T, F>(namespace: &OwnedFd, work: F) -> Result<T, NetworkError>
where
    T: Send,
    F: AsyncFnOnce(rtnetlink::Handle) -> Result<T, NetworkError> + Send,
{
    let run = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| NetworkError::Enter(e.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NetworkError::Connect)?;
        runtime.block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(NetworkError::Connect)?;
            tokio::spawn(connection);
            work(handle).await
        })
    };
    thread::scope(|scope| scope.spawn(run).join()).map_err(|_| NetworkError::Panicked)?
}
