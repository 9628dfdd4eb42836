//! What is dialled on localhost of a container's network namespace is answered on localhost of its guest.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use kata_guest_tests::{Container, HostProcess, Wire, Wired};
use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Servers on the guest's localhost, a port each: an echo on either family, and all that is wrong with servers.
const SERVERS: &str = r#"
import socket, struct, threading, time
def echo(c):
    while True:
        d = c.recv(65536)
        if not d: break
        c.sendall(d)
    c.shutdown(socket.SHUT_WR)
    while c.recv(1): pass
    c.close()
def flood(c):
    try:
        while True: c.sendall(bytes(65536))
    except OSError: c.close()
def reset(c):
    c.recv(1)
    c.sendall(b"half")
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()
def early(c):
    c.sendall(b"hello")
    c.shutdown(socket.SHUT_WR)
    witness(c, "early")
def witness(c, name="witness"):
    n = 0
    while True:
        try: d = c.recv(65536)
        except ConnectionResetError:
            n = "reset"; break
        if not d: break
        n += len(d)
    print(name, n, flush=True)
    c.close()
kept = []
def serve(family, address, port, handler, backlog=200):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(backlog); kept.append(s)
    def run():
        while True:
            c, _ = s.accept()
            threading.Thread(target=handler, args=(c,), daemon=True).start()
    if handler: threading.Thread(target=run, daemon=True).start()
V4, V6 = socket.AF_INET, socket.AF_INET6
serve(V4, "127.0.0.1", 7001, echo)
serve(V6, "::1", 7002, echo)
serve(V4, "127.0.0.1", 7003, flood)
serve(V4, "127.0.0.1", 7004, None, 0)
serve(V4, "127.0.0.1", 7005, reset)
serve(V4, "127.0.0.1", 7006, lambda c: kept.append(c))
serve(V4, "127.0.0.1", 7007, early)
serve(V4, "127.9.9.9", 7008, echo)
serve(V4, "127.0.0.1", 7009, witness)
serve(V4, "0.0.0.0", 7010, echo)
print("ready", flush=True)
threading.Event().wait()
"#;

/// Longer than anything takes on a busy machine; it only keeps a test that fails from hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container with these servers, in a namespace.
fn fixture() -> Option<Wired> {
    let wire = || Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
    Wired::new(wire, &["python3", "-c", SERVERS], json!({}))
}

/// Returns when the servers listen.
fn serving<'a>(fixture: &'a Wired, id: &str) -> Container<'a> {
    let container = fixture.start(id);
    container.stdout.until_has("ready");
    container
}

fn inside<T: Send + 'static>(fixture: &Wired, work: impl FnOnce() -> T + Send + 'static) -> T {
    fixture.wire.inside(work).join().unwrap()
}

fn dial(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes until the end, and the error that it ended with.
fn rest(mut stream: TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut said = Vec::new();
    let error = stream.read_to_end(&mut said).err().map(|error| error.kind());
    (said, error)
}

/// Sends all, half-closes, and reads the echo to its end at the same time.
fn echoed(stream: TcpStream, bytes: Vec<u8>) -> (Vec<u8>, Option<ErrorKind>) {
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(&bytes).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let said = rest(stream);
    writer.join().unwrap();
    said
}

/// Bytes that repeat nowhere near.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

#[test]
fn both_families_and_every_address_of_localhost_lead_into_the_guest() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    let container = serving(&fixture, "localhost");
    assert_eq!(container.state()["kata"]["localhost"], "leads into the guest");
    let said = inside(&fixture, || {
        // Engines try the other family only when the first can't be dialled: so both lead to a server of either.
        ["127.0.0.1:7001", "[::1]:7002", "[::1]:7001", "127.0.0.1:7002", "127.9.9.9:7008"]
            .map(|address| (address, echoed(dial(address), b"across".to_vec())))
    });
    for (address, said) in said {
        assert_eq!(said, (b"across".to_vec(), None), "{address}");
    }
    fixture.ends_as_before(container, &before);
}

#[test]
fn what_listens_in_the_namespace_itself_answers_itself() {
    let Some(fixture) = fixture() else { return };
    let _container = serving(&fixture, "own");
    let said = inside(&fixture, || {
        let listener = TcpListener::bind("0.0.0.0:7010").unwrap();
        let own = thread::spawn(move || {
            for _ in 0..2 {
                listener.accept().unwrap().0.write_all(b"namespace").unwrap();
            }
        });
        let said = [(); 2].map(|()| rest(dial("127.0.0.1:7010")));
        own.join().unwrap();
        // And when it listens no more, the guest does.
        (said, echoed(dial("127.0.0.1:7010"), b"guest".to_vec()))
    });
    let own = (b"namespace".to_vec(), None);
    assert_eq!(said, ([own.clone(), own], (b"guest".to_vec(), None)));
}

#[test]
fn nobody_can_dial_the_listener_itself() {
    let Some(fixture) = fixture() else { return };
    let _container = serving(&fixture, "hidden");
    let table = inside(&fixture, || fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    // 0A is LISTEN; 192.0.0.8 is an address that no host has.
    let listening: Vec<&str> = table.lines().filter(|line| line.contains(" 0A ")).collect();
    assert!(
        listening.len() == 1 && listening[0].contains(": 080000C0:"),
        "no other listener in the namespace: {table}"
    );
    let port = listening[0].split("080000C0:").nth(1).and_then(|rest| rest.split(' ').next());
    let port = u16::from_str_radix(port.unwrap(), 16).unwrap();
    for address in [format!("192.0.0.8:{port}"), format!("192.0.2.2:{port}")] {
        let dialled = address.clone();
        let error = inside(&fixture, move || TcpStream::connect(dialled).unwrap_err());
        assert_ne!(error.kind(), ErrorKind::TimedOut, "{address}: {error}");
        let peer = fixture.wire.beside({
            let address = address.parse().unwrap();
            move || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
        });
        assert!(peer.join().unwrap(), "{address} answers from outside");
    }
}

#[test]
fn refusals_and_resets_are_resets_and_half_closes_stay_half_closes() {
    let Some(fixture) = fixture() else { return };
    let container = serving(&fixture, "ends");
    let (refused, broken, early) = inside(&fixture, || {
        let refused = rest(dial("127.0.0.1:7999"));
        let mut broken = dial("127.0.0.1:7005");
        broken.write_all(b"x").unwrap();
        let broken = rest(broken);
        // The server has ended its half before the client says anything.
        let early = dial("127.0.0.1:7007");
        let mut writing = early.try_clone().unwrap();
        let said = rest(early);
        writing.write_all(&noise(300_000)).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
        // One that breaks off instead of ending.
        let mut abandoned = dial("127.0.0.1:7009");
        abandoned.write_all(b"x").unwrap();
        rustix::net::sockopt::set_socket_linger(&abandoned, Some(Duration::ZERO)).unwrap();
        drop(abandoned);
        (refused, broken, said)
    });
    assert_eq!(refused, (Vec::new(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(broken, (b"half".to_vec(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(early, (b"hello".to_vec(), None));
    container.stdout.until_has("early 300000");
    container.stdout.until_has("witness reset");
}

#[test]
fn ten_megabytes_go_both_ways_at_once_and_whole() {
    let Some(fixture) = fixture() else { return };
    let _container = serving(&fixture, "bulk");
    let bytes = noise(10 << 20);
    let sum = Sha256::digest(&bytes);
    let (said, error) = inside(&fixture, || echoed(dial("127.0.0.1:7001"), bytes));
    assert_eq!((said.len(), error), (10 << 20, None));
    assert_eq!(Sha256::digest(&said), sum);
}

#[test]
fn a_hundred_connections_at_once_are_told_apart() {
    let Some(fixture) = fixture() else { return };
    let _container = serving(&fixture, "many");
    let all = Arc::new(Barrier::new(100));
    let clients: Vec<_> = (0..100_u8)
        .map(|number| {
            let all = all.clone();
            fixture.wire.inside(move || {
                let mut stream = dial("127.0.0.1:7001");
                let mut first = [0];
                stream.write_all(&[number]).unwrap();
                stream.read_exact(&mut first).unwrap();
                assert_eq!(first, [number]);
                // All of them stand now.
                all.wait();
                let bytes = vec![number; 40_000];
                assert_eq!(echoed(stream, bytes.clone()), (bytes, None));
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_guest_that_floods_or_reads_nothing_or_never_accepts_harms_only_its_own_connection() {
    let Some(fixture) = fixture() else { return };
    let container = serving(&fixture, "hostile");
    let memory = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory(container.pid);
    let stuck = inside(&fixture, || {
        let flooded: Vec<_> = (0..10).map(|_| dial("127.0.0.1:7003")).collect();
        let mut deaf: Vec<_> = (0..10).map(|_| dial("127.0.0.1:7006")).collect();
        // Two fill its backlog; the others wait.
        let never: Vec<_> = (0..10).map(|_| dial("127.0.0.1:7004")).collect();
        for stream in &mut deaf {
            stream.set_nonblocking(true).unwrap();
        }
        // As much as they take, round after round while an honest connection comes through.
        let block = vec![1; 1 << 16];
        for _ in 0..20 {
            for stream in &mut deaf {
                while stream.write(&block).is_ok() {}
            }
            assert_eq!(echoed(dial("127.0.0.1:7001"), vec![2; 100_000]), (vec![2; 100_000], None));
        }
        (flooded, deaf, never)
    });
    let grown = memory(container.pid).saturating_sub(before);
    assert!(grown < 4096, "the monitor has grown by {grown} KiB");
    drop(stuck);
    let (said, _) = inside(&fixture, || echoed(dial("127.0.0.1:7001"), b"after".to_vec()));
    assert_eq!(said, b"after");
}

#[test]
fn nothing_is_left_when_container_or_shim_are_killed_under_connections() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    for (id, whom) in [("killed", None), ("orphaned", Some(HostProcess::Shim))] {
        let container = serving(&fixture, id);
        let traces = container.traces();
        let mut open = inside(&fixture, || {
            let mut stream = dial("127.0.0.1:7001");
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        });
        match whom {
            Some(process) => container.signal_host(process, Signal::KILL),
            None => assert_eq!(container.kill("KILL").code, 0),
        }
        // The end, or a reset.
        assert_eq!(open.read(&mut [0]).unwrap_or(0), 0, "{id}: it has ended");
        container.wait();
        container.remove(&traces);
        assert_eq!(fixture.snapshot(), before, "{id}");
        let sockets = inside(&fixture, || {
            let refused = TcpStream::connect("127.0.0.1:7001").unwrap_err().kind();
            let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
            (refused, table.lines().filter(|line| line.contains(" 0A ")).count())
        });
        assert_eq!(sockets, (ErrorKind::ConnectionRefused, 0), "{id}");
    }
}
