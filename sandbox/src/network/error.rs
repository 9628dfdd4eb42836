//! What can go wrong with a network.

use std::{io, path::PathBuf};

use kata_hypervisor::HypervisorError;
use thiserror::Error;

use super::guard::GuardError;
use crate::{ledger::LedgerError, step::InjectedFault};

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
    #[error("pass the links of network namespace {path} to the guest")]
    Guard {
        path: PathBuf,
        #[source]
        source: GuardError,
    },
    #[error("enter network namespace")]
    Enter(#[source] io::Error),
    #[error("set sysctl {path}")]
    Sysctl {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("connect to rtnetlink")]
    Connect(#[source] io::Error),
    #[error("change the cards of the running VM")]
    Plug(#[source] HypervisorError),
    #[error("the guest has let go of {0} cards of this link that nobody has asked it for")]
    LetGo(u32),
    #[error("list {what}")]
    List {
        what: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("get random bytes")]
    Random(#[source] io::Error),
    #[error("let a link take in frames to all groups")]
    Groups(#[source] io::Error),
    #[error("make a tap")]
    Tap(#[source] io::Error),
    #[error("set up tap {tap}")]
    SetTap {
        tap: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("look at the ingress hook of {link}")]
    Hook {
        link: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("limit what leaves by {link}, as {key} asks")]
    Limit {
        link: String,
        key: &'static str,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("take away the limit that a dead sandbox has left on {link}")]
    Lift {
        link: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error(
        "{link} has a queueing discipline of its own ({kind}), which is left alone: {key} can't be held there"
    )]
    Queued { link: String, kind: String, key: &'static str },
    #[error("load the program that redirects packets")]
    Program(#[source] io::Error),
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
    #[error("take localhost back from the guest")]
    CloseLocalhost(#[source] io::Error),
    #[error("write into the ledger")]
    Ledger(#[source] Box<LedgerError>),
    #[error("network thread panicked")]
    Panicked,
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}
