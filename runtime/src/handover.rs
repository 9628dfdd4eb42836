//! The caller's side of [`kata_engine_api::handover`].

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use kata_engine_api::{
    dial::{HANDOVER_SOCKET, connect_packet},
    handover::{Answer, Confirmed, Request},
};
use kata_sys::scm;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::sockopt::{Timeout, set_socket_timeout},
};

use crate::{failure::Failure, sandbox_dir::SandboxDir};

/// The shim answers to a creation within milliseconds; this is far beyond them.
const DEADLINE: Duration = Duration::from_secs(300);

/// How many packets have to follow a request with so many descriptors.
pub fn further_packets(fds: usize) -> usize {
    fds.div_ceil(scm::MAX_FDS).saturating_sub(1)
}

/// Asks and waits for the answer; a container that was created is taken back when the connection ends unconfirmed.
pub fn ask(
    dir: &SandboxDir,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<OwnedFd, Failure> {
    let socket = send(dir, request, fds)?;
    bound(&socket, Timeout::Recv)?;
    answer(dir, &socket).map(|()| socket)
}

/// Sends a request to which the answer may take as long as it likes.
pub fn send(
    dir: &SandboxDir,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<OwnedFd, Failure> {
    let socket = connect_packet(dir.as_fd(), HANDOVER_SOCKET)
        .map_err(Failure::host("connect to the shim for the handover"))?;
    bound(&socket, Timeout::Send)?;
    let text = serde_json::to_vec(request).map_err(|error| lost(dir, &error.to_string()))?;
    if text.len() > scm::MAX_PACKET {
        let message = "the image has more layers than one request can name";
        return Err(Failure::Usage(message.to_owned()));
    }
    let mut chunks = fds.chunks(scm::MAX_FDS);
    // A shim that is gone says more in its log than in an errno.
    let send = |packet: &[u8], fds: &[BorrowedFd<'_>]| {
        scm::send(&socket, packet, fds).map_err(|error| lost(dir, &error.to_string()))
    };
    send(&text, chunks.next().unwrap_or_default())?;
    chunks.try_for_each(|chunk| send(b"{}", chunk))?;
    Ok(socket)
}

/// Takes the answer.
pub fn answer(dir: &SandboxDir, socket: &OwnedFd) -> Result<(), Failure> {
    let packet = scm::receive(socket).map_err(|error| lost(dir, &error.to_string()))?;
    if packet.is_end() {
        return Err(Failure::ShimLost(dir.last_words()));
    }
    match serde_json::from_slice(&packet.bytes) {
        Ok(Answer::Ok {}) => Ok(()),
        Ok(Answer::Error(failure)) => {
            Err(Failure::Refused { kind: failure.kind, message: failure.message })
        }
        Err(error) => Err(lost(dir, &format!("its answer was not understood: {error}"))),
    }
}

fn bound(socket: &OwnedFd, direction: Timeout) -> Result<(), Failure> {
    set_socket_timeout(socket, direction, Some(DEADLINE))
        .map_err(Failure::system("bound the handover"))
}

/// Says that somebody knows of the container that was asked for.
pub fn confirm(connection: &OwnedFd) -> io::Result<()> {
    scm::send(connection, &serde_json::to_vec(&Confirmed {})?, &[])
}

fn lost(dir: &SandboxDir, what: &str) -> Failure {
    Failure::ShimLost(format!("{what} ({})", dir.last_words()))
}

/// A text as a sealed memfd: what was checked is what is used.
pub fn sealed(name: &str, text: &[u8]) -> Result<OwnedFd, Failure> {
    let failed = || Failure::system(format!("hand over {name}"));
    let fd =
        memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(failed())?;
    let mut rest = text;
    while !rest.is_empty() {
        let written =
            rustix::io::retry_on_intr(|| rustix::io::write(&fd, rest)).map_err(failed())?;
        rest = &rest[written..];
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals).map_err(failed())?;
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0)).map_err(failed())?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
        thread,
    };

    use kata_engine_api::{
        dial::{HANDOVER_SOCKET, accept, bind_packet},
        handover::{Answer, Exec, Failure as Refusal, FailureKind, Request},
    };
    use kata_sys::scm;

    use super::{ask, further_packets, sealed};
    use crate::{
        failure::Failure,
        sandbox_dir::{Root, SandboxDir},
    };

    fn request() -> Request {
        let exec_id = "e1".to_owned();
        let container_id = "c1".to_owned();
        Request::Exec(Exec {
            container_id,
            exec_id,
            monitor_pid: 1,
            terminal_size: None,
            callers_terminal: false,
            ignore_paused: false,
        })
    }

    #[test]
    fn descriptors_that_one_packet_can_not_carry_follow_in_others() {
        assert_eq!([0, 1, 253, 254, 507].map(further_packets), [0, 0, 0, 1, 2]);
        let scratch = tempfile::tempdir().unwrap();
        let dir = Root::new(scratch.path()).unwrap().create(&"c1".parse().unwrap()).unwrap();
        let listener = bind_packet(dir.as_fd(), HANDOVER_SOCKET).unwrap();
        let shim = thread::spawn(move || {
            let connection = accept(&listener).unwrap();
            let counts = [0; 3].map(|_| scm::receive(&connection).unwrap().fds.len());
            let answer = serde_json::to_vec(&Answer::Ok {}).unwrap();
            scm::send(&connection, &answer, &[]).unwrap();
            counts
        });
        let memfd = sealed("process.json", b"{}").unwrap();
        ask(&dir, &request(), &[memfd.as_fd(); 600]).unwrap();
        assert_eq!(shim.join().unwrap(), [253, 253, 94]);
    }

    /// A shim that takes one request, checks that a descriptor came, and answers so.
    fn shim(dir: &SandboxDir, answer: Option<Vec<u8>>) -> thread::JoinHandle<Request> {
        let listener = bind_packet(dir.as_fd(), HANDOVER_SOCKET).unwrap();
        thread::spawn(move || {
            let connection = accept(&listener).unwrap();
            let packet = scm::receive(&connection).unwrap();
            assert_eq!(packet.fds.len(), 1);
            if let Some(answer) = answer {
                scm::send(&connection, &answer, &[]).unwrap();
            }
            serde_json::from_slice(&packet.bytes).unwrap()
        })
    }

    fn exchange(answer: Option<Vec<u8>>) -> Result<(), Failure> {
        let scratch = tempfile::tempdir().unwrap();
        let dir = Root::new(scratch.path()).unwrap().create(&"c1".parse().unwrap()).unwrap();
        let shim = shim(&dir, answer);
        let memfd = sealed("process.json", b"{}").unwrap();
        let result = ask(&dir, &request(), &[memfd.as_fd()]).map(drop);
        assert_eq!(shim.join().unwrap(), request());
        result
    }

    #[test]
    fn an_answer_is_believed() {
        exchange(Some(serde_json::to_vec(&Answer::Ok {}).unwrap())).unwrap();
    }

    #[test]
    fn a_refusal_keeps_its_kind_and_words() {
        let message = "exec: \"x\": executable file not found in $PATH".to_owned();
        let refusal = Refusal { kind: FailureKind::CommandNotFound, message };
        let answer = serde_json::to_vec(&Answer::Error(refusal)).unwrap();
        let failure = exchange(Some(answer)).unwrap_err();
        assert_eq!(failure.exit_code(), 127);
        assert!(failure.line().contains("executable file not found in $PATH"));
    }

    #[test]
    fn a_shim_that_hangs_up_or_babbles_is_an_error() {
        assert!(matches!(exchange(None), Err(Failure::ShimLost(_))));
        assert!(matches!(exchange(Some(b"{}".to_vec())), Err(Failure::ShimLost(_))));
    }

    #[test]
    fn a_sealed_text_can_be_read_and_not_changed() {
        let mut file = File::from(sealed("x", b"text").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        assert!(file.write_all(b"x").is_err());
    }
}
