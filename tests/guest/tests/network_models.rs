//! The ways in which a link's frames get into the guest: chosen by what the link is, or by configuration.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use kata_guest_tests::{Capture, Container, Wire, Wired, has_kind, ip, run, snapshot};
use serde_json::json;

const SIZE: usize = 3_000_000;

/// Two ends of a tunnel, a link of packets in each namespace, as a VPN makes them.
struct Tunnel {
    ends: Vec<Child>,
    _directory: tempfile::TempDir,
}

impl Tunnel {
    fn between(wire: &Wire) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let end = |namespace: &str, link: &str, own: &str, other: &str| {
            let link = format!("TUN,tun-name={link},tun-type=tun,iff-no-pi");
            let way = format!("UNIX-SENDTO:{},bind={}", path(other), path(own));
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net=/run/netns/{namespace}"));
            enter.args(["--", "socat", "-d", "-d", "-b9100"]).args([link, way]);
            enter.stderr(Stdio::piped()).spawn().unwrap()
        };
        let ends = vec![end(&wire.name, "tun0", "a", "b"), end(&wire.peer, "peer0", "b", "a")];
        let mut tunnel = Self { ends, _directory: directory };
        for end in &mut tunnel.ends {
            // Its link is there when it has opened both ways.
            let said = Capture::of(end.stderr.take().unwrap().into());
            said.until_has("starting data transfer loop");
        }
        set_up(wire, "tun0");
        tunnel
    }
}

/// Gives addresses to a link of the container's namespace, and to `peer0` of the peer's.
fn set_up(wire: &Wire, link: &str) {
    for (namespace, link, own, other) in
        [(&wire.name, link, "10.8.0.2", "10.8.0.1"), (&wire.peer, "peer0", "10.8.0.1", "10.8.0.2")]
    {
        ip(&["-n", namespace, "address", "add", own, "peer", other, "dev", link]);
        let own6 = format!("2001:db8:8::{}/64", &own[own.len() - 1..]);
        ip(&["-n", namespace, "address", "add", &own6, "dev", link, "nodad"]);
        ip(&["-n", namespace, "link", "set", link, "up", "mtu", "1400"]);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for end in &mut self.ends {
            end.kill().ok();
            end.wait().ok();
        }
    }
}

/// Says back what it hears, and hears back what it says.
const GUEST: &str = "
import socket, sys
server = socket.create_server(('::', 6000), family=socket.AF_INET6, dualstack_ipv6=True)
print('listening', flush=True)
for _ in range(2):
    c = server.accept()[0]
    data = bytearray()
    while piece := c.recv(65536):
        data.extend(piece)
    d = socket.create_connection((c.getpeername()[0].removeprefix('::ffff:'), 5000), 60)
    d.sendall(data)
    d.close()
print('done', flush=True)
";

/// Bytes go in and come back, opened from either side.
fn exchange(wire: &Wire, container: &Container<'_>, addresses: [&'static str; 2]) {
    container.stdout.until_has("listening");
    for address in addresses {
        let peer = wire.beside(move || {
            let listener = TcpListener::bind(("::", 5000)).unwrap();
            let sent: Vec<u8> = (0..SIZE).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let mut stream = TcpStream::connect((address, 6000)).unwrap();
            stream.write_all(&sent).unwrap();
            drop(stream);
            let mut back = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut back).unwrap();
            assert!(back == sent, "{} bytes came back", back.len());
        });
        peer.join().unwrap();
    }
    container.stdout.until_has("done");
}

/// A guest in a namespace of its own, by a model.
fn case(model: &str, wire: Wire) -> Option<Wired> {
    let script = format!("python3 -c \"{GUEST}\"; exec sleep 1000");
    let model = json!({"io.katacontainers.network.model": model});
    Wired::new(|| wire, &["sh", "-c", &script], model)
}

/// What `state` says of the links.
fn told(container: &Container<'_>) -> String {
    container.state()["kata"]["network"].to_string()
}

#[test]
fn a_tunnel_of_packets_reaches_the_guest() {
    let wire = Wire::bare();
    let _tunnel = Tunnel::between(&wire);
    let before = snapshot(Some(&wire.name));
    let Some(case) = case("auto", wire) else { return };
    let container = case.start("model");
    exchange(&case.wire, &container, ["10.8.0.2", "2001:db8:8::2"]);
    assert!(
        told(&container).contains("tun0 (tun): its packets redirected"),
        "{}",
        told(&container)
    );
    pings_as_long_as_the_mtu(&container);
    let said = container.exec(&["sh", "-c", "ip -brief link; ip route"], b"").stdout();
    assert!(said.contains("tun0") && said.contains("10.8.0.1 dev tun0"), "{said}");
    drop(container);
    assert_eq!(case.snapshot(), before);
}

fn pings_as_long_as_the_mtu(container: &Container<'_>) {
    for ping in [["10.8.0.1", "-s", "1372"], ["2001:db8:8::1", "-s", "1352"]] {
        let ping = [&["ping", "-M", "do", "-c", "3", "-W", "5"], &ping[..]].concat();
        let ping = container.exec(&ping, b"");
        assert_eq!(ping.code, 0, "{}{}", ping.stdout(), ping.stderr());
    }
}

/// Two ends of WireGuard. What is encrypted goes over localhost of the peer's namespace, where both were made: the socket
/// of a link stays where that was.
fn wireguard(wire: &Wire) {
    let keys = tempfile::tempdir().unwrap();
    let wg = |words: &[&str], input: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &wire.peer, "wg"]).args(words);
        let output = run(command, input.as_bytes());
        assert_eq!(output.code, 0, "{words:?}: {}", output.stderr());
        output.stdout().trim().to_owned()
    };
    let made = ["wg0", "peer0"].map(|link| {
        let private = wg(&["genkey"], "");
        let file = keys.path().join(link).display().to_string();
        std::fs::write(&file, &private).unwrap();
        ip(&["-n", &wire.peer, "link", "add", link, "type", "wireguard"]);
        (link, file, wg(&["pubkey"], &private))
    });
    let ports = ["51001", "51002"];
    for (own, other) in [(0, 1), (1, 0)] {
        let (link, private, _) = &made[own];
        let (_, _, public) = &made[other];
        let endpoint = format!("127.0.0.1:{}", ports[other]);
        let socket = ["set", link, "listen-port", ports[own], "private-key", private];
        let far = ["peer", public, "allowed-ips", "0.0.0.0/0,::/0", "endpoint", &endpoint];
        wg(&[&socket[..], &far].concat(), "");
    }
    ip(&["-n", &wire.peer, "link", "set", "wg0", "netns", &wire.name]);
    set_up(wire, "wg0");
}

#[test]
fn wireguard_reaches_the_guest() {
    if !has_kind("wireguard") {
        return;
    }
    let wire = Wire::bare();
    wireguard(&wire);
    reaches_the_guest(wire, "wg0 (wireguard): its packets redirected");
}

/// The pair that Cilium makes, whose ends speak ARP in one mode and not in the other.
#[test]
fn netkit_reaches_the_guest_in_both_modes() {
    for mode in ["l2", "l3"] {
        let kind = format!("netkit mode {mode}");
        if !has_kind(&kind) {
            return;
        }
        let wire = Wire::bare();
        let add = format!("link add eth0 type {kind} peer name peer0 netns {}", wire.peer);
        wire.ip(&add.split(' ').collect::<Vec<_>>());
        set_up(&wire, "eth0");
        println!("{kind}");
        reaches_the_guest(wire, "eth0 (netkit): redirected to a tap");
    }
}

/// Prints what is sent to a group.
const LISTENER: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 5000))
group = socket.inet_aton('239.1.2.3') + socket.inet_aton('192.0.2.2')
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
s.settimeout(60)
print(s.recv(100).decode())
";

#[test]
fn multicast_reaches_the_guest_by_links_that_choose() {
    for kind in ["macvlan mode bridge", "ipvlan mode l2"] {
        if !has_kind(kind) {
            continue;
        }
        let wire = Wire::bare();
        for command in [
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "address add 192.0.2.1/24 dev other",
            "route add 239.0.0.0/8 dev other",
            &format!("link add eth0 link lower netns {} type {kind}", wire.name),
        ] {
            ip(&[&["-n", &wire.peer], &command.split(' ').collect::<Vec<_>>()[..]].concat());
        }
        wire.ip(&["address", "add", "192.0.2.2/24", "dev", "eth0"]);
        wire.ip(&["link", "set", "eth0", "up"]);
        let Some(case) = case("auto", wire) else { return };
        let container = case.start("groups");
        let (heard, hears) = mpsc::channel::<()>();
        let sender = case.wire.beside(move || {
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            // Who has not joined yet gets none.
            while hears.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                socket.send_to(b"to all", "239.1.2.3:5000").unwrap();
            }
        });
        let said = container.exec(&["python3", "-c", LISTENER], b"");
        drop(heard);
        sender.join().unwrap();
        assert_eq!(said.stdout(), "to all\n", "{kind}: {}", said.stderr());
    }
}

/// What the link of a namespace carries is the guest's, both ways and as long as it may be, by the way that is told.
fn reaches_the_guest(wire: Wire, way: &str) {
    let before = snapshot(Some(&wire.name));
    let Some(case) = case("auto", wire) else { return };
    let container = case.start("model");
    exchange(&case.wire, &container, ["10.8.0.2", "2001:db8:8::2"]);
    let said = told(&container);
    assert!(said.contains(way), "{said}");
    pings_as_long_as_the_mtu(&container);
    drop(container);
    assert_eq!(case.snapshot(), before, "{way}");
}

#[test]
fn a_program_redirects_frames_as_well() {
    let wire = Wire::new(&["192.0.2.2/24", "2001:db8::2/64"], &["192.0.2.1/24", "2001:db8::1/64"]);
    let before = snapshot(Some(&wire.name));
    let Some(case) = case("ebpf", wire) else { return };
    let container = case.start("model");
    exchange(&case.wire, &container, ["192.0.2.2", "2001:db8::2"]);
    assert!(
        told(&container).contains("eth0 (veth): redirected to a tap by eBPF"),
        "{}",
        told(&container)
    );
    let filters = case.wire.tc(&["filter", "show", "dev", "eth0", "ingress"]);
    assert!(filters.contains("bpf") && !filters.contains("u32"), "{filters}");
    drop(container);
    assert_eq!(case.snapshot(), before);
}

#[test]
fn packets_are_refused_by_name_where_nothing_can_add_their_header() {
    let wire = Wire::bare();
    let _tunnel = Tunnel::between(&wire);
    let Some(case) = case("u32", wire) else { return };
    let container = case.start("model");
    assert!(told(&container).contains("tun0 (tun): not in the guest"), "{}", told(&container));
    assert!(told(&container).contains("network.model=u32"), "{}", told(&container));
    let filters = case.wire.tc(&["qdisc", "show", "dev", "tun0"]);
    assert!(!filters.contains("ingress"), "{filters}");
    assert_eq!(container.exec(&["ls", "/sys/class/net"], b"").stdout(), "lo\n");
}

#[test]
fn no_model_is_loopback_alone_and_a_namespace_that_nobody_touches() {
    let wire = Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
    let before = snapshot(Some(&wire.name));
    let Some(case) = case("none", wire) else { return };
    let container = case.start("model");
    assert_eq!(container.exec(&["ls", "/sys/class/net"], b"").stdout(), "lo\n");
    assert!(told(&container).contains("loopback alone"), "{}", told(&container));
    assert_eq!(case.snapshot(), before);
}
