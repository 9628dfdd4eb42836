//! The links of the sandbox's network namespace, passed through to the guest and followed.
//!
//! ```text
//! engine's side ── veth ┐ namespace ┌ tap ── VMM ── guest's eth0
//!                       └─ redirect ┘
//! ```
//!
//! Each link of the namespace gets a tap beside it; tc redirects every frame of the one to the other. The guest takes
//! over the link's name, MAC, MTU, addresses, routes and neighbours; the link keeps its own, since engines read them.
//! A tap lives as long as its descriptor. The redirect lives on a link that belongs to the engine, so it
//! stands in the ledger. What may be touched at all is decided by [`guard`], and nowhere else; what the guest has of it all
//! is the work of the [`Mirror`].

mod card;
mod dump;
mod error;
pub mod guard;
pub mod localhost;
mod mirror;
mod model;
mod monitor;
mod nft;
mod parse;
mod program;
mod rate;
mod redirect;
mod routes;
mod rule;
mod sysctl;
mod view;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use kata_config::NetworkModel;
use kata_protocol::sysctl::path_of_name;
use rtnetlink::{packet_route::RouteNetlinkMessage, proto::Connection};
use rustix::{
    fs::fstat,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::{runtime, sync::watch};

use self::{
    card::{Wired, Wiring},
    dump::Reader,
    guard::{Claim, GuardError, Identity},
    monitor::Monitor,
    sysctl::Values,
};
use crate::{
    ledger::Ledger,
    step::{Step, Steps},
};

pub use self::{
    error::NetworkError,
    mirror::{Attached, Mirror},
    rate::{Rate, Rates},
};

/// A network card for the VMM.
#[derive(Debug)]
pub struct Nic {
    /// Host end: the queues of its tap.
    pub queues: Vec<OwnedFd>,
    /// The card's own address.
    pub mac: [u8; 6],
}

/// A network namespace by descriptor, and the path at which a later process finds it.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace.
    pub fd: OwnedFd,
    /// Host path for the ledger: the engine's, or the monitor's `/proc/PID/ns/net`.
    pub path: PathBuf,
}

impl Namespace {
    /// Claims it.
    ///
    /// # Errors
    /// [`NetworkError::Guard`].
    pub fn claim(&self) -> Result<Arc<Claim>, NetworkError> {
        Claim::take(&self.fd).map(Arc::new).map_err(|source| self.refused(source))
    }

    /// The same by another descriptor.
    ///
    /// # Errors
    /// [`NetworkError::Identify`].
    pub fn try_clone(&self) -> Result<Self, NetworkError> {
        let fd = self.fd.try_clone().map_err(NetworkError::Identify)?;
        Ok(Self { fd, path: self.path.clone() })
    }

    fn refused(&self, source: GuardError) -> NetworkError {
        NetworkError::Guard { path: self.path.clone(), source }
    }
}

/// What a mirror works with.
#[derive(Debug)]
pub struct Means {
    /// On the namespace.
    pub claim: Arc<Claim>,
    /// Where redirects are written down.
    pub ledger: Arc<Ledger>,
    /// The seam.
    pub steps: Arc<Steps>,
    /// How frames get from a link to its tap.
    pub model: NetworkModel,
    /// Most that a link may carry.
    pub rates: Rates,
    /// Queues of each card, at least one.
    pub queues: usize,
    /// A process of the engine's asks others from within the namespace, and is to get its answers.
    pub own_sockets: bool,
    /// Where it says how each link is passed.
    pub note: watch::Sender<String>,
}

/// The namespace's identity while it lives.
///
/// # Errors
/// [`NetworkError::Identify`].
pub fn identity(namespace: impl AsFd) -> Result<Identity, NetworkError> {
    let stat = fstat(namespace).map_err(|e| NetworkError::Identify(e.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Passes the namespace's links through as they are now; `spares` says how many cards more there shall be than links.
///
/// # Errors
/// [`NetworkError`]; what was made is undone.
pub async fn attach(
    namespace: Namespace,
    means: Means,
    spares: impl FnOnce(usize) -> usize,
) -> Result<(Mirror, Attached), NetworkError> {
    let Means { claim, ledger, steps, model, rates, queues, own_sockets, note } = means;
    // Whoever may not be looked at is not even listened to.
    claim.check().map_err(|source| namespace.refused(source))?;
    let handle = connect(&namespace.fd)?;
    let (mut connection, reader) = open(&namespace.fd)?;
    connection.set_forward_done(true);
    tokio::spawn(connection);
    let socket = enter(&namespace.fd, monitor::subscribe)?.map_err(NetworkError::Connect)?;
    let monitor = Monitor::new(socket).map_err(NetworkError::Connect)?;
    let wiring =
        Wiring { handle, namespace, claim, ledger, steps, model, rates, queues, own_sockets };
    let mut mirror = Mirror::new(wiring, monitor, Reader::new(reader), note);
    let attached = mirror.attach(spares).await?;
    Ok((mirror, attached))
}

/// Sets those of kernel parameters, by their names, that are the network's, where runc sets them too: engines look there for what
/// they have asked for. A namespace that is not to be touched is left as it is.
///
/// # Errors
/// [`NetworkError::Sysctl`] for a value that the kernel refuses, [`NetworkError::Guard`] when it is not known whose the namespace is.
pub fn set_sysctls(
    namespace: &Namespace,
    sysctls: &BTreeMap<String, String>,
    steps: &Steps,
) -> Result<(), NetworkError> {
    let paths = sysctls.iter().map(|(name, value)| (path_of_name(name), value.clone()));
    let sysctls: Values = paths.filter(|(path, _)| path.starts_with("net/")).collect();
    if sysctls.is_empty() {
        return Ok(());
    }
    let checked = Claim::visit(&namespace.fd).and_then(|claim| claim.check().map(|()| claim));
    let _claim = match checked {
        Ok(claim) => claim,
        // Whoever has it keeps it as it is.
        Err(why @ (GuardError::Host { .. } | GuardError::Shared { .. } | GuardError::Claimed)) => {
            tracing::debug!(%why, "kernel parameters are set in the guest alone");
            return Ok(());
        }
        Err(source) => return Err(namespace.refused(source)),
    };
    steps.enter(Step::SetSysctls)?;
    enter(&namespace.fd, || sysctl::write(&sysctls))?
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
    /// Whether what leaves by it is limited.
    pub limited: bool,
}

/// Removes the redirect of a link, if its namespace is still there and no other sandbox has it meanwhile.
///
/// Blocks, and has a runtime of its own: it also runs where there is none.
///
/// # Errors
/// [`NetworkError`].
pub fn restore_link(redirected: &Redirected<'_>, steps: &Steps) -> Result<(), NetworkError> {
    let Some((namespace, _claim)) = reclaim(redirected.namespace, redirected.identity)? else {
        return Ok(());
    };
    let wired = Wired {
        link: redirected.index,
        name: redirected.link.to_owned(),
        own_qdisc: redirected.own_qdisc,
        limited: redirected.limited,
    };
    let work = || {
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NetworkError::Connect)?;
        runtime.block_on(async { card::restore(&connect(&namespace)?, &wired, steps).await })
    };
    // The caller's thread may be one that drives a runtime.
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| NetworkError::Panicked)?
}

/// Keeps a namespace that the ledger names from being claimed; `None` when there is nothing left in it to take away.
fn reclaim(path: &Path, known: Identity) -> Result<Option<(OwnedFd, Claim)>, NetworkError> {
    let namespace = match File::open(path) {
        Ok(file) => OwnedFd::from(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(NetworkError::Open { path: path.into(), source }),
    };
    if identity(&namespace)? != known {
        return Ok(None);
    }
    match Claim::visit(&namespace) {
        Ok(claim) => Ok(Some((namespace, claim))),
        // The sandbox that has it found what we had left, and replaced it or took it away.
        Err(GuardError::Claimed) => Ok(None),
        Err(source) => Err(NetworkError::Guard { path: path.into(), source }),
    }
}

/// Speaks rtnetlink in the namespace, on the runtime that it is called on.
fn connect(namespace: &OwnedFd) -> Result<rtnetlink::Handle, NetworkError> {
    let (connection, handle) = open(namespace)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A connection to the namespace, which has to be spawned, and its handle.
fn open(
    namespace: &OwnedFd,
) -> Result<(Connection<RouteNetlinkMessage>, rtnetlink::Handle), NetworkError> {
    let runtime = runtime::Handle::current();
    enter(namespace, || {
        let _runtime = runtime.enter();
        rtnetlink::new_connection().map(|(connection, handle, _)| (connection, handle))
    })?
    .map_err(NetworkError::Connect)
}

/// Runs something on a thread of its own that is in the namespace: what is opened there stays there.
fn enter<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    let run = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| NetworkError::Enter(e.into()))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(run).join()).map_err(|_| NetworkError::Panicked)?
}

/// The same in a namespace in which nobody has done anything yet.
fn enter_new<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetworkError> {
    let run = || {
        kata_sys::network::enter_new().map_err(NetworkError::Enter)?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(run).join()).map_err(|_| NetworkError::Panicked)?
}
