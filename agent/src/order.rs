//! What the agent and its helper say to each other, over a packet socket.
//!
//! ```text
//! agent ── Order + [cgroup, spec] ────────► helper, for an init      (JSON; the documents are sealed files)
//! agent ── Order + [cgroup, process, init, cgroup namespace, filters] ─► helper, for one more
//! agent ◄── Forked + [pidfd, filters] ───── helper, which ends
//! agent ◄── Ready + [terminal] ──────────── container process, in place and waiting, if it waits
//! agent ── one byte ──────────────────────► container process, if it waits
//! agent ◄── end of file ─────────────────── its program runs; or Failed, at any point
//! ```

use std::{
    error::Error,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::FileExt,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::spec::Shared;

/// What the helper is to make. The first file of every order is the directory of the cgroup to be born in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Size of the terminal, where there is one.
    pub terminal: Option<TerminalSize>,
    /// Which kind of process.
    pub kind: Kind,
}

/// Which kind of process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A container and its init. File: the spec.
    Init {
        /// Name of the container, for its keyring.
        container_id: String,
        /// Guest path of the root file system.
        root: String,
    },
    /// A process more in a running container. Files: the process, the pidfd of init, its cgroup namespace, the compiled filters.
    Exec {
        /// Name of the container, for its keyring.
        container_id: String,
        /// What it has in common with init.
        shared: Shared,
    },
}

/// Characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The container process exists, under this pid (the agent's pid namespace). Files: its pidfd; of an init also the
    /// compiled filters, for processes that are added. One that waits for its start says when it is ready.
    Forked { pid: i32, waits: bool },
    /// It is set up and waits for its start; the terminal's master comes along.
    Ready,
    /// It came to nothing.
    Failed(Failure),
}

/// Why there is no process, in one line that a person reads.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

/// What the host makes of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program is not there.
    NotFound,
    /// The program may not be executed.
    PermissionDenied,
    /// The request asks for what can't be.
    Invalid,
    /// There is one of that name.
    Exists,
    /// Not in the present state of the container.
    State,
    /// A step failed.
    Internal,
}

impl Failure {
    /// A failure of the spec.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Invalid, message: message.into() }
    }

    /// A step that failed.
    pub fn internal(attempted: impl Into<String>, error: &dyn Error) -> Self {
        let message = format!("{}: {}", attempted.into(), with_causes(error));
        Self { kind: FailureKind::Internal, message }
    }
}

/// Names the step that an error ended.
pub trait Step<T> {
    /// The error becomes a [`Failure`] that begins with what was attempted.
    fn step<S: Into<String>>(self, attempted: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Error> Step<T> for Result<T, E> {
    fn step<S: Into<String>>(self, attempted: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::internal(attempted(), &error))
    }
}

/// An error and what it came from, down to the system's words.
pub fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let begin = (plain(&error), error.to_string());
    let (text, _) = causes.fold(begin, |(text, said), cause| {
        let words = cause.to_string();
        // Some libraries say the cause in the error's own text.
        let text = if said.ends_with(&words) { text } else { format!("{text}: {}", plain(&words)) };
        (text, words)
    });
    text
}

/// An error in the words of C and Go: lower case, without the number that Rust adds. Engines look for these.
pub fn plain(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let Some((words, _)) = text.split_once(" (os error") else { return text };
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A sealed file in memory that holds `content`.
pub fn document(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let mut file = File::from(memfd_create("kata-document", flags)?);
    file.write_all(content)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file.into())
}

/// Reads a document from its beginning, wherever its shared offset stands.
pub fn read_document(document: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let file = File::from(document.try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Sends one message with its descriptors.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    kata_sys::scm::send(socket, &serde_json::to_vec(message)?, fds)
}

/// Receives one message; `None` at the end of the connection.
pub fn receive<T: for<'de> Deserialize<'de>>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let packet = kata_sys::scm::receive(socket)?;
    if packet.is_end() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&packet.bytes)?, packet.fds)))
}

/// The byte that starts a waiting process.
pub const START: &[u8] = b"s";

/// Blocks until the agent says start; false when it has gone away instead.
pub fn wait_for_start(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut byte = [0];
    Ok(File::from(socket.try_clone_to_owned()?).read(&mut byte)? == START.len())
}

#[cfg(test)]
mod tests {
    use std::{io, os::fd::AsFd};

    use super::{
        Kind, Order, Report, TerminalSize, document, read_document, receive, send, with_causes,
    };

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        let said = |text| with_causes(&Outer { text, source: io::Error::from_raw_os_error(22) });
        assert_eq!(said("open it"), "open it: invalid argument");
        assert_eq!(
            said("Compile caused by: Invalid argument (os error 22)"),
            "compile caused by: Invalid argument"
        );
    }

    #[test]
    fn a_document_reads_the_same_every_time() {
        let file = document(b"{}").unwrap();
        for _ in 0..2 {
            assert_eq!(read_document(file.as_fd()).unwrap(), b"{}");
        }
    }

    #[test]
    fn an_order_arrives_with_its_document() {
        let (near, far) = kata_sys::scm::packet_pair().unwrap();
        let terminal = Some(TerminalSize { rows: 24, columns: 80 });
        let kind = Kind::Init { container_id: "a".into(), root: "/r".into() };
        let file = document(b"spec").unwrap();
        send(&near, &Order { terminal, kind }, &[file.as_fd()]).unwrap();
        let (order, fds): (Order, _) = receive(&far).unwrap().unwrap();
        assert_eq!(order.terminal, terminal);
        assert_eq!(read_document(fds[0].as_fd()).unwrap(), b"spec");
        drop(near);
        assert!(receive::<Report>(&far).unwrap().is_none());
    }
}
