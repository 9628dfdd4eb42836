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
//! stands in the ledger.
//!
//! **Invariant**: nothing is touched in a namespace in which PID 1 or this process lives.

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
use thiserror::Error;

use crate::{
    ledger::{Entry, Ledger, LedgerError},
    step::{InjectedFault, Step, Steps},
};

/// Why the network could not be passed through.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum NetworkError {
    #[error("open network namespace {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("identify network namespace")]
    Identify(#[source] io::Error),
    #[error("this is the host's own network namespace, in which Kata touches nothing")]
    HostNamespace,
    #[error("enter network namespace")]
    Enter(#[source] io::Error),
    #[error("connect to rtnetlink")]
    Connect(#[source] io::Error),
    #[error("list {what}")]
    List {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("link {link} is of a kind that cannot be passed to a guest yet ({kind})")]
    Kind { link: String, kind: String },
    #[error("make a tap for link {link}")]
    Tap {
        link: String,
        #[source]
        source: io::Error,
    },
    #[error("set up tap {tap}")]
    SetTap {
        tap: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("redirect {from} to {to}")]
    Redirect {
        from: String,
        to: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("remove the redirect of link {link}")]
    Restore {
        link: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("write the redirect into the ledger")]
    Ledger(#[source] Box<LedgerError>),
    #[error("network thread panicked")]
    Panicked,
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

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
}

/// A network namespace by descriptor, and the path at which a later process finds it.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace.
    pub fd: OwnedFd,
    /// Host path for the ledger: the engine's, or the monitor's `/proc/PID/ns/net`.
    pub path: PathBuf,
}

/// Device and inode: the namespace's identity while it lives.
pub fn identity(namespace: impl AsFd) -> Result<(u64, u64), NetworkError> {
    let stat = fstat(namespace).map_err(|e| NetworkError::Identify(e.into()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Reads the namespace's links as they are now and passes them through.
///
/// Blocks; the caller runs it on a thread that may.
///
/// # Errors
/// [`NetworkError`]; what was made is undone by replaying the ledger.
pub fn attach(
    namespace: &Namespace,
    ledger: &Ledger,
    steps: &Steps,
) -> Result<Network, NetworkError> {
    refuse_host(&namespace.fd)?;
    let identity = identity(&namespace.fd)?;
    let intend = |link: &str| {
        let entry =
            Entry::Redirect { namespace: namespace.path.clone(), identity, link: link.to_owned() };
        ledger.intend(steps, &entry).map_err(|e| NetworkError::Ledger(Box::new(e)))
    };
    inside(&namespace.fd, async |handle| {
        steps.enter(Step::ScanNetwork)?;
        let found = scan::scan(&handle).await?;
        let mut network = found.guest;
        for link in found.links {
            let nic = redirect::attach(&handle, &link, &intend, steps).await?;
            network.nics.push(nic);
        }
        Ok(network)
    })
}

/// Removes the redirect of a link, if the namespace at `path` is still the same one and has the link.
///
/// # Errors
/// [`NetworkError`].
pub fn restore_link(path: &Path, expected: (u64, u64), link: &str) -> Result<(), NetworkError> {
    let namespace = match File::open(path) {
        Ok(file) => OwnedFd::from(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(NetworkError::Open { path: path.into(), source }),
    };
    if identity(&namespace)? != expected {
        return Ok(());
    }
    inside(&namespace, async |handle| redirect::remove(&handle, link).await)
}

fn refuse_host(namespace: &OwnedFd) -> Result<(), NetworkError> {
    let namespace = identity(namespace)?;
    for path in ["/proc/1/ns/net", "/proc/self/ns/net"] {
        let host = match File::open(path) {
            Ok(host) => host,
            // An init with more capabilities than ours may not be looked at; this process's own namespace is the
            // host's too, unless somebody made it otherwise.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(source) => return Err(NetworkError::Open { path: path.into(), source }),
        };
        if identity(host)? == namespace {
            return Err(NetworkError::HostNamespace);
        }
    }
    Ok(())
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
