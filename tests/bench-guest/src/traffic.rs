//! Traffic between two ends of a network: one serves, the other one asks, and counts what really arrived.
//!
//! Each connection begins with a byte that says what it is for, one of [`Kind`].

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 5201;
const BLOCK: usize = 64 * 1024;
const DATAGRAM: usize = 64;

/// How long the other end may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a receiver of datagrams looks before it asks whether there will be more.
const LOOK: Duration = Duration::from_millis(50);

/// What is measured; `in` is towards the one who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    In,
    Out,
    Echo,
    DatagramsIn,
    DatagramsOut,
}

impl Kind {
    const ALL: [(Self, &str, u8); 5] = [
        (Self::In, "in", b'i'),
        (Self::Out, "out", b'o'),
        (Self::Echo, "echo", b'e'),
        (Self::DatagramsIn, "datagrams-in", b'd'),
        (Self::DatagramsOut, "datagrams-out", b'D'),
    ];

    fn of(matches: impl Fn(&(Self, &str, u8)) -> bool) -> io::Result<Self> {
        let found = Self::ALL.into_iter().find(matches);
        found.map(|(kind, ..)| kind).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn byte(self) -> u8 {
        Self::ALL.into_iter().find(|(kind, ..)| *kind == self).map_or(0, |(.., byte)| byte)
    }
}

/// Serves each connection on a thread of its own, for ever.
pub fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
    println!("serving");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            // A client that goes away in the middle has what it wants.
            serve_one(connection).ok();
        });
    }
    Ok(())
}

fn serve_one(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut byte = [0];
    connection.read_exact(&mut byte)?;
    match Kind::of(|(.., known)| *known == byte[0])? {
        Kind::In => {
            let taken = drain(&mut connection)?;
            connection.write_all(&taken.to_le_bytes())
        }
        Kind::Out => loop {
            connection.write_all(&[0; BLOCK])?;
        },
        Kind::Echo => loop {
            connection.read_exact(&mut byte)?;
            connection.write_all(&byte)?;
        },
        Kind::DatagramsIn => {
            let socket = UdpSocket::bind((connection.local_addr()?.ip(), 0))?;
            connection.write_all(&socket.local_addr()?.port().to_le_bytes())?;
            let count = receive(&socket, &connection)?;
            connection.write_all(&count.to_le_bytes())
        }
        Kind::DatagramsOut => {
            let mut port = [0; 2];
            connection.read_exact(&mut port)?;
            let socket = UdpSocket::bind((connection.local_addr()?.ip(), 0))?;
            socket.connect((connection.peer_addr()?.ip(), u16::from_le_bytes(port)))?;
            connection.set_nonblocking(true)?;
            while connection.read(&mut byte).is_err() {
                send_some(&socket);
            }
            Ok(())
        }
    }
}

/// Asks for one kind of traffic over so many connections, for so long, and prints the figure: MB/s, datagrams per second,
/// or the 50th and the 99th percentile of a round trip in microseconds.
pub fn ask(address: &str, kind: &str, streams: usize, length: Duration) -> io::Result<()> {
    let address: IpAddr = address.parse().map_err(io::Error::other)?;
    let server = SocketAddr::new(address, PORT);
    let kind = Kind::of(|(_, name, _)| *name == kind)?;
    match kind {
        Kind::Echo => {
            let mut times = echo(connect(server, kind)?, length)?;
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
            println!("{:.1} {:.1}", at(50), at(99));
        }
        Kind::In | Kind::Out => println!("{:.3}", bulk(server, kind, streams, length)? / 1e6),
        Kind::DatagramsIn => println!("{:.0}", datagrams_in(connect(server, kind)?, length)?),
        Kind::DatagramsOut => println!("{:.0}", datagrams_out(connect(server, kind)?, length)?),
    }
    Ok(())
}

/// A connection for this kind of traffic, as soon as somebody serves.
fn connect(server: SocketAddr, kind: Kind) -> io::Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&server, Duration::from_secs(1)) {
            Ok(mut connection) => {
                connection.set_nodelay(true)?;
                connection.write_all(&[kind.byte()])?;
                return Ok(connection);
            }
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            // Refused at once, or unreachable: a moment later it may not be.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Bytes per second of all connections together, between their common start and the last one's end.
fn bulk(server: SocketAddr, kind: Kind, streams: usize, length: Duration) -> io::Result<f64> {
    let ready = Barrier::new(streams);
    let one = || {
        let connection = connect(server, kind);
        // Whatever came of it: the others wait.
        ready.wait();
        let (mut connection, started) = (connection?, Instant::now());
        let bytes = match kind {
            Kind::In => push(&mut connection, length)?,
            _ => pull(&mut connection, length)?,
        };
        Ok((bytes, started.elapsed()))
    };
    let ends: Vec<io::Result<(u64, Duration)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..streams).map(|_| scope.spawn(one)).collect();
        let broken = |_| Err(io::ErrorKind::BrokenPipe.into());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(broken)).collect()
    });
    let ends = ends.into_iter().collect::<io::Result<Vec<_>>>()?;
    let bytes: u64 = ends.iter().map(|(bytes, _)| bytes).sum();
    let took = ends.iter().map(|(_, took)| *took).max().unwrap_or_default();
    Ok(bytes as f64 / took.as_secs_f64())
}

/// Writes for so long; how much the other end says that it has.
fn push(connection: &mut TcpStream, length: Duration) -> io::Result<u64> {
    let (block, started) = ([0; BLOCK], Instant::now());
    while started.elapsed() < length {
        connection.write_all(&block)?;
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; 8];
    connection.read_exact(&mut answer)?;
    Ok(u64::from_le_bytes(answer))
}

/// Reads for so long.
fn pull(connection: &mut TcpStream, length: Duration) -> io::Result<u64> {
    let (mut block, mut bytes, started) = ([0; BLOCK], 0, Instant::now());
    while started.elapsed() < length {
        match connection.read(&mut block)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => bytes += got as u64,
        }
    }
    Ok(bytes)
}

fn drain(connection: &mut TcpStream) -> io::Result<u64> {
    let (mut block, mut bytes) = ([0; BLOCK], 0);
    loop {
        match connection.read(&mut block)? {
            0 => return Ok(bytes),
            got => bytes += got as u64,
        }
    }
}

fn echo(mut connection: TcpStream, length: Duration) -> io::Result<Vec<Duration>> {
    let (mut times, started, mut byte) = (Vec::new(), Instant::now(), [0]);
    while times.is_empty() || started.elapsed() < length {
        let sent = Instant::now();
        connection.write_all(b"e")?;
        connection.read_exact(&mut byte)?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

fn datagrams_in(mut control: TcpStream, length: Duration) -> io::Result<f64> {
    let mut port = [0; 2];
    control.read_exact(&mut port)?;
    let socket = UdpSocket::bind((control.local_addr()?.ip(), 0))?;
    socket.connect((control.peer_addr()?.ip(), u16::from_le_bytes(port)))?;
    let started = Instant::now();
    while started.elapsed() < length {
        send_some(&socket);
    }
    let took = started.elapsed();
    control.write_all(b".")?;
    let mut count = [0; 8];
    control.read_exact(&mut count)?;
    Ok(u64::from_le_bytes(count) as f64 / took.as_secs_f64())
}

fn datagrams_out(mut control: TcpStream, length: Duration) -> io::Result<f64> {
    let socket = UdpSocket::bind((control.local_addr()?.ip(), 0))?;
    control.write_all(&socket.local_addr()?.port().to_le_bytes())?;
    socket.set_read_timeout(Some(LOOK))?;
    let (mut count, started, mut datagram) = (0_u64, Instant::now(), [0; DATAGRAM]);
    while started.elapsed() < length {
        count += u64::from(socket.recv(&mut datagram).is_ok());
    }
    let took = started.elapsed();
    control.write_all(b".")?;
    Ok(count as f64 / took.as_secs_f64())
}

/// A handful, between two looks at the clock. What a full queue refuses is not counted by the one who receives.
fn send_some(socket: &UdpSocket) {
    for _ in 0..32 {
        socket.send(&[0; DATAGRAM]).ok();
    }
}

/// Counts datagrams until the other end has said that there will be no more, and none waits.
fn receive(socket: &UdpSocket, control: &TcpStream) -> io::Result<u64> {
    socket.set_read_timeout(Some(LOOK))?;
    control.set_nonblocking(true)?;
    let (mut count, mut datagram) = (0, [0; DATAGRAM]);
    loop {
        if socket.recv(&mut datagram).is_ok() {
            count += 1;
            continue;
        }
        let mut byte = [0];
        if { control }.read(&mut byte).is_ok() {
            control.set_nonblocking(false)?;
            return Ok(count);
        }
    }
}
