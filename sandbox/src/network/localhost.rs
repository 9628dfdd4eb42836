//! Localhost of the namespace leads into the guest.
//!
//! ```text
//! engine ── 127.0.0.1:80 ─► lo ─ socket? ─► whoever listens in the namespace
//!                                └─ none ─► listener ─► monitor ══ stream ══ agent ─► 127.0.0.1:80 in the guest
//! ```
//!
//! A table of nf_tables steers to a listener what arrives over `lo` for no socket of the namespace. The listener has
//! addresses that no host has, so it is found by that rule alone; the destination that the client has dialled is the accepted
//! socket's own address. The table is in the ledger; the listeners live as long as their descriptors.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use kata_sys::transparent;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with,
    },
};

use super::{
    Namespace, NetworkError, enter,
    guard::{Claim, Identity},
    identity,
    nft::{self, IPV4, IPV6, Meta, Transaction},
};
use crate::{
    ledger::{Entry, Ledger},
    step::{Step, Steps},
};

const TABLE: &str = "kata-localhost";
const CHAIN: &str = "into-guest";

/// Before the destination's translation, after connection tracking: whose place in the order is called "mangle".
const PRIORITY: i32 = -150;

/// The dummy addresses of RFC 7600 and RFC 9780: nobody has them, so nobody can dial them.
const LISTENERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8)),
];

/// In every network namespace.
const LOOPBACK: u32 = 1;
const TCP: u8 = 6;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// What localhost is opened with.
#[derive(Debug)]
pub struct Plan {
    /// The namespace.
    pub namespace: Namespace,
    /// On it.
    pub claim: Arc<Claim>,
    /// Where the table is written down.
    pub ledger: Arc<Ledger>,
    /// The seam.
    pub steps: Arc<Steps>,
}

impl Plan {
    /// Makes listeners and table; the host's kernel may lack what it takes, which the inner error says.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn open(&self) -> Result<io::Result<Vec<OwnedFd>>, NetworkError> {
        self.claim.check().map_err(|source| self.namespace.refused(source))?;
        let entry = Entry::Localhost {
            namespace: self.namespace.path.clone(),
            identity: identity(&self.namespace.fd)?,
        };
        self.ledger.intend(&self.steps, &entry).map_err(|e| NetworkError::Ledger(Box::new(e)))?;
        self.steps.enter(Step::OpenLocalhost)?;
        enter(&self.namespace.fd, make)
    }
}

/// Removes the table, if the namespace is still there and no other sandbox has it meanwhile.
///
/// # Errors
/// [`NetworkError`].
pub fn close(path: &Path, known: Identity, steps: &Steps) -> Result<(), NetworkError> {
    let Some((namespace, _claim)) = super::reclaim(path, known)? else { return Ok(()) };
    steps.enter(Step::CloseLocalhost)?;
    let removed = enter(&namespace, || {
        let mut transaction = Transaction::new();
        // Removing what is not there is an error; making what is there is none.
        transaction.add_table(TABLE);
        transaction.delete_table(TABLE);
        transaction.commit()
    })?;
    match removed {
        Err(error) if !is_lack(&error) => Err(NetworkError::CloseLocalhost(error)),
        // A kernel without nf_tables has no table either.
        _ => Ok(()),
    }
}

/// Whether an error says that the kernel has no such thing.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [Errno::NOENT, Errno::OPNOTSUPP, Errno::PROTONOSUPPORT, Errno::AFNOSUPPORT];
    lacks.iter().any(|lack| error.raw_os_error() == Some(lack.raw_os_error()))
}

/// In the calling thread's network namespace.
fn make() -> io::Result<Vec<OwnedFd>> {
    let mut transaction = Transaction::new();
    // One that a sandbox has left goes.
    transaction.add_table(TABLE);
    transaction.delete_table(TABLE);
    transaction.add_table(TABLE);
    transaction.add_prerouting(TABLE, CHAIN, PRIORITY);
    let mut listeners = Vec::new();
    for address in LISTENERS {
        let (listener, port) = match bound(address) {
            // Kernels can be without IPv6.
            Err(error) if is_lack(&error) => continue,
            made => made?,
        };
        listeners.push(listener);
        add_rules(&mut transaction, address, port);
    }
    transaction.commit()?;
    Ok(listeners)
}

fn bound(address: IpAddr) -> io::Result<(OwnedFd, u16)> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    transparent::allow(&socket, address.is_ipv6())?;
    bind(&socket, &SocketAddr::new(address, 0))?;
    listen(&socket, BACKLOG)?;
    let own = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((socket, own.port()))
}

fn add_rules(transaction: &mut Transaction, listener: IpAddr, port: u16) {
    let (loopback, address) = match listener {
        IpAddr::V4(address) => {
            (nft::Step::Header { offset: 16, bytes: &[127] }, address.octets().to_vec())
        }
        IpAddr::V6(address) => {
            const ONE: [u8; 16] = Ipv6Addr::LOCALHOST.octets();
            (nft::Step::Header { offset: 24, bytes: &ONE }, address.octets().to_vec())
        }
    };
    let family = if listener.is_ipv6() { IPV6 } else { IPV4 };
    let own = [
        nft::Step::Meta(Meta::Incoming(LOOPBACK)),
        nft::Step::Meta(Meta::Family(family)),
        nft::Step::Meta(Meta::Protocol(TCP)),
        loopback,
    ];
    let pass = [nft::Step::OrdinarySocket, nft::Step::Accept];
    transaction.add_rule(TABLE, CHAIN, &[own.as_slice(), &pass].concat());
    let steer = [nft::Step::Steer { family, address: &address, port }];
    transaction.add_rule(TABLE, CHAIN, &[own.as_slice(), &steer].concat());
}
