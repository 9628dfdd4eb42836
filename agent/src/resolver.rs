//! The resolver that docker has its containers ask, which answers on the host.
//!
//! ```text
//! container ── question ─► 127.0.0.11:53 ─► number ═══ stream ═══► whoever asks it in the network namespace
//!     ◄─────── answer ─────────────────── by number ◄═════════════════════┘
//! ```
//!
//! It listens at another port, to which a [redirect] leads.
//!
//! Messages are passed on as they are, ids included. Questions that wait are bounded: a new one takes the place of the oldest,
//! whose asker asks again.

mod redirect;

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kata_protocol::{
    hello::{StreamKind, StreamToken},
    resolver::{ADDRESS, Header, Transport},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::{
    order::{Failure, Step},
    socket, streams,
};

/// Questions that wait for their answers.
const MAX_WAITING: usize = 128;

/// Connections that ask at once.
const MAX_CONNECTIONS: usize = 32;

/// Questions on their way to the stream.
const QUEUE: usize = 16;

/// As long as resolvers wait that ask on a connection, and one may be idle.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most bytes of a message.
const LONGEST: usize = u16::MAX as usize;

/// Answers the guest's questions for as long as the host takes them; returns when they can be asked.
pub async fn serve(token: StreamToken) -> Result<(), Failure> {
    let (datagrams, listener) = listen().await.step(|| format!("listen on {}", ADDRESS.ip()))?;
    let port = datagrams.local_addr().step(|| "look at a socket")?.port();
    let stream = streams::dial(StreamKind::Resolver, token).await.step(|| "dial the host")?;
    let redirect =
        redirect::install(ADDRESS, port).step(|| format!("redirect {ADDRESS} to port {port}"))?;
    let (questions, waiting) = mpsc::channel(QUEUE);
    let desk =
        Arc::new(Desk { questions, askers: Mutex::default(), datagrams: Arc::new(datagrams) });
    tokio::spawn(async move {
        let _redirect = redirect;
        // Whichever ends first, the stream is gone: with the other end of it nobody is left to answer.
        tokio::select! {
            _ = send_questions(&stream, waiting) => {}
            _ = take_answers(&stream, &desk) => {}
            _ = desk.take_datagrams() => {}
            () = desk.take_connections(&listener) => {}
        }
    });
    Ok(())
}

/// One port, whichever is free, for both transports.
async fn listen() -> io::Result<(UdpSocket, TcpListener)> {
    const ATTEMPTS: usize = 16;
    let mut outcome = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..ATTEMPTS {
        let datagrams = UdpSocket::bind(SocketAddrV4::new(*ADDRESS.ip(), 0)).await?;
        match TcpListener::bind(datagrams.local_addr()?).await {
            Ok(listener) => return Ok((datagrams, listener)),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// Who waits for an answer.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

#[derive(Default)]
struct Askers {
    last: u32,
    /// The lowest number has waited longest; that they begin anew one day costs a question.
    waiting: BTreeMap<u32, Asker>,
}

/// Where questions get their numbers, and answers find their askers.
struct Desk {
    questions: mpsc::Sender<Vec<u8>>,
    askers: Mutex<Askers>,
    datagrams: Arc<UdpSocket>,
}

impl Desk {
    fn askers(&self) -> MutexGuard<'_, Askers> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, message: &[u8], asker: Asker) {
        let transport = match asker {
            Asker::Datagram(_) => Transport::Udp,
            Asker::Connection(_) => Transport::Tcp,
        };
        let number = {
            let mut askers = self.askers();
            askers.last = askers.last.wrapping_add(1);
            let number = askers.last;
            if askers.waiting.len() >= MAX_WAITING {
                askers.waiting.pop_first();
            }
            askers.waiting.insert(number, asker);
            number
        };
        let Ok(length) = u16::try_from(message.len()) else { return };
        let header = Header { number, transport, length }.encode();
        // One that is too short to be a question is none for the host either.
        if Header::decode(header).is_ok() {
            // The stream is gone: so is all of this in a moment.
            self.questions.send([header.as_slice(), message].concat()).await.ok();
        }
    }

    async fn answer(&self, header: Header, message: Vec<u8>) {
        let asker = self.askers().waiting.remove(&header.number);
        match (asker, header.transport) {
            (Some(Asker::Datagram(address)), Transport::Udp) => {
                // As with any datagram: whoever misses it asks again.
                self.datagrams.send_to(&message, address).await.ok();
            }
            (Some(Asker::Connection(asker)), Transport::Tcp) => drop(asker.send(message)),
            _ => {}
        }
    }

    async fn take_datagrams(&self) -> io::Result<()> {
        let mut message = vec![0; LONGEST];
        loop {
            match self.datagrams.recv_from(&mut message).await {
                Ok((length, from)) => {
                    let question = message.get(..length).unwrap_or_default();
                    self.ask(question, Asker::Datagram(from)).await;
                }
                // An answer did not find its asker any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn take_connections(self: &Arc<Self>, listener: &TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(permit) = connections.clone().acquire_owned().await {
            // One that is gone again, or for which there is no descriptor now: the next one.
            let Ok((connection, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            let desk = self.clone();
            tokio::spawn(async move {
                // Its end, whatever it is, is the asker's affair.
                desk.converse(connection).await.ok();
                drop(permit);
            });
        }
    }

    /// Question and answer on one connection, one by one, until its asker has no more.
    async fn converse(&self, mut connection: TcpStream) -> io::Result<()> {
        loop {
            let length = timeout(PATIENCE, connection.read_u16()).await??;
            let mut message = vec![0; length.into()];
            timeout(PATIENCE, connection.read_exact(&mut message)).await??;
            let (asker, answer) = oneshot::channel();
            self.ask(&message, Asker::Connection(asker)).await;
            let answer = timeout(PATIENCE, answer).await?.map_err(io::Error::other)?;
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let whole = [length.to_be_bytes().as_slice(), &answer].concat();
            timeout(PATIENCE, connection.write_all(&whole)).await??;
        }
    }
}

async fn send_questions(
    stream: &AsyncFd<OwnedFd>,
    mut questions: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(question) = questions.recv().await {
        socket::send_all(stream, &question).await?;
    }
    Ok(())
}

async fn take_answers(stream: &AsyncFd<OwnedFd>, desk: &Desk) -> io::Result<()> {
    loop {
        let mut header = [0; Header::LEN];
        socket::receive_all(stream, &mut header).await?;
        let header = Header::decode(header).map_err(io::Error::other)?;
        let mut message = vec![0; header.length.into()];
        socket::receive_all(stream, &mut message).await?;
        desk.answer(header, message).await;
    }
}
