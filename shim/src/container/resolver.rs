//! Docker's resolver, for containers whose `/etc/resolv.conf` names it.
//!
//! It answers in the network namespace, so the guest passes questions on to the monitor, which asks them there. Docker writes the
//! file before the container starts, or when it connects it with the first network that has names: with each link
//! that comes it is read again.

use std::{
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kata_protocol::{
    agent,
    hello::{StreamKind, StreamToken},
    resolver::ADDRESS,
};
use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::{Container, new_token};
use crate::failure::Refusal;

/// Longer ones are none that an engine has written.
const LONGEST: u64 = 64 * 1024;

/// What a container knows of it.
#[derive(Debug)]
pub struct Resolver {
    /// The file on its `/etc/resolv.conf`, to be opened.
    file: Option<OwnedFd>,
    /// The guest asks, or is being told to.
    served: AtomicBool,
}

impl Resolver {
    /// For the file, if there is one.
    pub fn new(file: Option<OwnedFd>) -> Self {
        Self { file, served: AtomicBool::new(false) }
    }

    /// Whether the file names docker's resolver now. What a container has made of it is no error.
    fn is_wanted(&self) -> bool {
        let Some(file) = &self.file else { return false };
        match read(file) {
            Ok(text) => names(&text),
            Err(error) => {
                tracing::debug!(%error, "read the container's resolv.conf");
                false
            }
        }
    }
}

fn read(file: &OwnedFd) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// As resolv.conf(5) has it: a keyword at the line's beginning, and an address.
fn names(text: &str) -> bool {
    let address = ADDRESS.ip().to_string();
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some(&address)
    })
}

impl Container {
    /// The token of the stream that a guest is to be booted with, when its first container asks docker's resolver.
    pub(super) fn expect_resolver(self: &Arc<Self>) -> Result<Option<StreamToken>, Refusal> {
        if !self.resolver.is_wanted() || self.resolver.served.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let token = new_token()?;
        let stream = self.sandbox.switchboard().expect(token, StreamKind::Resolver);
        let container = self.clone();
        tokio::spawn(async move {
            // None comes when the guest could not be told.
            if let Ok(stream) = stream.await {
                container.init.monitor.serve_resolver(&stream).await;
            }
        });
        Ok(Some(token))
    }

    /// Has a guest that runs ask docker's resolver, if its container wants to by now.
    pub(super) async fn serve_resolver_if_asked(self: &Arc<Self>) {
        if let Err(refusal) = self.serve_resolver().await {
            tracing::warn!(
                message = refusal.message,
                "docker's resolver is not there in the guest"
            );
            self.resolver.served.store(false, Ordering::Relaxed);
        }
    }

    async fn serve_resolver(self: &Arc<Self>) -> Result<(), Refusal> {
        let Some(token) = self.expect_resolver()? else { return Ok(()) };
        let request = agent::ServeResolverRequest { token: token.to_vec(), ..Default::default() };
        let told = self.sandbox.agent()?.serve_resolver(&request).await;
        if told.is_err() {
            self.sandbox.switchboard().forget(token);
        }
        Ok(told.map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn only_a_nameserver_line_names_it() {
        assert!(names("search x\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(names("nameserver 10.0.0.1\nnameserver\t127.0.0.11"));
        for text in ["", "# nameserver 127.0.0.11", "nameserver 127.0.0.1", "search 127.0.0.11"] {
            assert!(!names(text), "{text}");
        }
    }
}
