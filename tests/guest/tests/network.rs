//! The links of a network namespace that was there at start, in the guest and afterwards.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener},
};

use kata_guest_tests::{
    Bundle, Kata, Output, Wire, debian, ip, repetitions, run, run_bundle, set_network, snapshot,
    unique,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A namespace with a bit of everything.
fn wire() -> Wire {
    let wire = Wire::new(
        &["192.0.2.2/24", "2001:db8::2/64", "198.51.100.7/32"],
        &["192.0.2.1/24", "2001:db8::1/64"],
    );
    for arguments in [
        "route add default via 192.0.2.1",
        "route add 203.0.113.0/24 via 192.0.2.1 metric 50 src 198.51.100.7",
        "route add 10.1.0.0/16 via 10.1.2.3 dev eth0 onlink",
        "route add 10.2.0.0/16 nexthop via 192.0.2.1 weight 3 nexthop via 192.0.2.9 dev eth0 onlink weight 1",
        "route add default via 2001:db8::1",
        "route add 2001:db8:2::/48 nexthop via 2001:db8::1 nexthop via 2001:db8::9",
        "route add 2001:db8:3::/48 via 2001:db8::1 metric 7 mtu 1280",
        "route add 10.3.0.0/16 via 192.0.2.1 table 100",
        "route add default via 2001:db8::1 table 1000",
        "rule add from 198.51.100.7 table 100 priority 50",
        "rule add not fwmark 7/0xff iif lo table 1000 suppress_prefixlength 0",
        "-6 rule add to 2001:db8:4::/48 ipproto 253 table 1000",
        "rule delete priority 32767",
        "neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 nud permanent dev eth0",
        "neighbour add 2001:db8::77 lladdr 02:00:00:00:00:77 nud permanent dev eth0",
    ] {
        wire.ip(&arguments.split(' ').collect::<Vec<_>>());
    }
    wire
}

/// Runs a shell script on Debian in the namespace.
fn run_in(wire: &Wire, script: &str) -> Option<Output> {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return None };
    let bundle = Bundle::new(&kata, root, &["sh", "-ec", script]);
    Some(run_bundle(&kata, bundle, |config| set_network(config, Some(&wire.path()))))
}

/// What `ip -json` prints, a list for each call, a line each.
const SHOW: [&str; 8] = [
    "-json address show",
    "-json -4 route show",
    "-json -6 route show",
    "-json neighbour show nud permanent",
    "-json -4 route show table 100",
    "-json -6 route show table 1000",
    "-json -4 rule show",
    "-json -6 rule show",
];

/// A namespace as both sides have to see it.
#[derive(Debug, PartialEq, Eq)]
struct View {
    links: BTreeSet<String>,
    addresses: BTreeSet<String>,
    routes: BTreeSet<String>,
    neighbours: BTreeSet<String>,
    rules: BTreeSet<String>,
}

impl View {
    fn parse(said: &str) -> Self {
        let lists: Vec<Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let pick = |entry: &Value, names: &[&str]| {
            names.iter().map(|name| format!("{name} {} ", entry[name])).collect::<String>()
        };
        let of = |list: &Value, names: &[&str]| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(|entry| pick(entry, names)).collect()
        };
        let mut addresses = BTreeSet::new();
        for link in lists[0].as_array().unwrap() {
            for address in link["addr_info"].as_array().unwrap() {
                addresses.insert(pick(link, &["ifname"]) + &pick(address, &["local", "prefixlen"]));
            }
        }
        let route = ["dst", "gateway", "dev", "metric", "metrics", "prefsrc", "scope", "nexthops"];
        let mut routes = of(&lists[1], &route);
        for list in [2, 4, 5] {
            routes.append(&mut of(&lists[list], &route));
        }
        let whole = |list: &Value| list.as_array().unwrap().iter().map(Value::to_string).collect();
        let rules: [BTreeSet<String>; 2] = [whole(&lists[6]), whole(&lists[7])];
        Self {
            links: of(&lists[0], &["ifname", "address", "mtu"]),
            addresses,
            routes,
            neighbours: of(&lists[3], &["dst", "dev", "lladdr"]),
            rules: rules.into_iter().flatten().collect(),
        }
    }

    fn of_host(wire: &Wire) -> Self {
        let said = SHOW.map(|show| wire.ip(&show.split(' ').collect::<Vec<_>>()));
        Self::parse(&said.map(|text| one_line(&text)).join("\n"))
    }
}

fn one_line(text: &str) -> String {
    text.lines().collect::<String>()
}

#[test]
fn the_guest_has_what_is_in_the_namespace() {
    let wire = wire();
    // A second link whose name comes before the first's, and that has another MTU.
    wire.ip(&[
        "link", "add", "aside", "mtu", "1500", "type", "veth", "peer", "name", "x", "netns",
        &wire.peer,
    ]);
    wire.ip(&["address", "add", "192.0.2.200/29", "dev", "aside"]);
    wire.ip(&["link", "set", "aside", "up"]);
    let host = View::of_host(&wire);
    let script = SHOW.map(|show| format!("ip {show} | tr -d '\\n'; echo")).join("\n");
    let Some(output) = run_in(&wire, &script) else { return };
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert_eq!(View::parse(&output.stdout()), host);
}

#[test]
fn a_link_that_is_down_stays_down() {
    let wire = wire();
    wire.ip(&["link", "set", "eth0", "down"]);
    let Some(output) = run_in(&wire, "ip -json link show eth0") else { return };
    assert_eq!(output.code, 0, "{}", output.stderr());
    let links: Value = serde_json::from_str(&output.stdout()).unwrap();
    assert_eq!(links[0]["operstate"], "DOWN");
}

#[test]
fn ping_reaches_the_peer() {
    let wire = wire();
    let script = "ping -4 -c 3 -i 0.2 -W 5 192.0.2.1 && ping -6 -c 3 -i 0.2 -W 5 2001:db8::1";
    let Some(output) = run_in(&wire, script) else { return };
    assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
}

#[test]
fn datagrams_as_long_as_the_mtu_pass_whole() {
    let wire = wire();
    // 28 bytes are headers.
    let script =
        "ping -M do -c 1 -W 5 -s 1372 192.0.2.1 && ! ping -M do -c 1 -W 5 -s 1373 192.0.2.1";
    let Some(output) = run_in(&wire, script) else { return };
    assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
}

/// Bytes that are not the same at any two places of a segment, over and over.
fn pattern(size: usize) -> Vec<u8> {
    let period = (0..251 * 251).map(|i| u8::try_from((i + i / 251 * 7) % 251).unwrap());
    period.cycle().take(size).collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends to the peer what it sends, and prints the checksum of that.
const CLIENT: &str = "
import hashlib, socket, sys, threading
s = socket.create_connection((sys.argv[1], 5000))
data = bytearray()
def receive():
    while piece := s.recv(65536):
        data.extend(piece)
receiver = threading.Thread(target=receive)
receiver.start()
size = int(sys.argv[2])
period = bytes((i + i // 251 * 7) % 251 for i in range(251 * 251))
s.sendall((period * (size // len(period) + 1))[:size])
s.shutdown(socket.SHUT_WR)
receiver.join()
print(hashlib.sha256(data).hexdigest())
";

fn both_directions(address: &str) {
    let wire = wire();
    let size = repetitions(50) << 20;
    let server = wire.beside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 5000)).unwrap());
    let server = server.join().unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut sender = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            sender.write_all(&pattern(size)).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        received
    });
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let arguments = ["python3", "-c", CLIENT, address, &size.to_string()];
    let bundle = Bundle::new(&kata, root, &arguments);
    let output = run_bundle(&kata, bundle, |config| set_network(config, Some(&wire.path())));
    assert_eq!(output.code, 0, "{}", output.stderr());
    let expected = hex(&pattern(size));
    assert_eq!(output.stdout().trim(), expected, "what the guest got");
    assert_eq!(hex(&peer.join().unwrap()), expected, "what the peer got");
}

#[test]
fn tcp_by_ipv4_carries_both_directions_at_once() {
    both_directions(&Ipv4Addr::new(192, 0, 2, 1).to_string());
}

#[test]
fn tcp_by_ipv6_carries_both_directions_at_once() {
    both_directions("2001:db8::1");
}

#[test]
fn the_peer_reaches_a_server_in_the_guest() {
    let wire = wire();
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let script = "
import socket
s = socket.create_server(('192.0.2.2', 5000))
print('listening', flush=True)
c = s.accept()[0]
c.sendall(c.recv(5)[::-1])
";
    let mut bundle = Bundle::new(&kata, root, &["python3", "-c", script]);
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    let container = kata_guest_tests::Container::started(&kata, &bundle, "server");
    container.stdout.until_has("listening");
    let client = wire.beside(|| {
        let mut stream = std::net::TcpStream::connect("192.0.2.2:5000").unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_eq!(client.join().unwrap(), "olleh");
}

#[test]
fn the_namespace_is_afterwards_as_before_and_serves_again() {
    let wire = wire();
    let before = snapshot(Some(&wire.name));
    for round in ["first", "second"] {
        let Some(output) = run_in(&wire, "ping -c 1 -W 5 192.0.2.1") else { return };
        assert_eq!(output.code, 0, "{round}: {}{}", output.stdout(), output.stderr());
        assert_eq!(snapshot(Some(&wire.name)), before, "after the {round}");
    }
}

/// Link-local addresses of `eth0`.
fn link_local(json: &str) -> Vec<String> {
    let links: Value = serde_json::from_str(json).unwrap();
    let addresses = links.as_array().unwrap().iter().filter(|link| link["ifname"] == "eth0");
    let addresses = addresses.flat_map(|link| link["addr_info"].as_array().unwrap());
    let found = addresses.map(|address| address["local"].as_str().unwrap_or_default().to_owned());
    found.filter(|address| address.starts_with("fe80:")).collect()
}

#[test]
fn a_link_local_address_is_the_hosts_or_none() {
    let cases: [(&str, &[&str], usize); 3] = [
        ("as it comes", &[], 1),
        (
            "not generated",
            &["ip link set eth0 addrgenmode none", "ip -6 address flush dev eth0"],
            0,
        ),
        ("no IPv6", &["sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1"], 0),
    ];
    for (case, changes, count) in cases {
        let wire = Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
        for change in changes {
            let words: Vec<&str> = change.split(' ').collect();
            ip(&[&["netns", "exec", &wire.name], &words[..]].concat());
        }
        let show = ["-json", "-6", "address", "show", "dev", "eth0"];
        let host = link_local(&wire.ip(&show));
        let Some(output) = run_in(&wire, &format!("ip {}", show.join(" "))) else { return };
        let guest = link_local(&output.stdout());
        assert_eq!((guest.len(), &guest), (count, &host), "{case}");
    }
}

#[test]
fn a_new_network_namespace_has_loopback_alone() {
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let output = kata.shell(&root, "ls /sys/class/net; ping -c 1 127.0.0.1 >&2");
    assert_eq!((output.code, output.stdout().as_str()), (0, "lo\n"), "{}", output.stderr());
}

/// Packets and bytes that a link has sent or received so far.
fn counted(namespace: &str, link: &str, way: &str) -> (u64, u64) {
    let said = ip(&["-n", namespace, "-s", "-json", "link", "show", link]);
    let links: Value = serde_json::from_str(&said).unwrap();
    let of = |what: &str| links[0]["stats64"][way][what].as_u64().unwrap();
    (of("packets"), of("bytes"))
}

#[test]
fn large_segments_pass_whole_in_both_directions() {
    let wire = wire();
    let size = 20 << 20;
    let server = wire.beside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 5000)).unwrap());
    let server = server.join().unwrap();
    let (name, peer) = (wire.name.clone(), wire.peer.clone());
    let counts = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        // Frames that go to the guest leave by its tap.
        let before = [counted(&peer, "peer0", "rx"), counted(&name, "kata0", "tx")];
        stream.write_all(b"!").unwrap();
        let mut received = vec![0; size];
        stream.read_exact(&mut received).unwrap();
        stream.write_all(&received).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut received).unwrap();
        let after = [counted(&peer, "peer0", "rx"), counted(&name, "kata0", "tx")];
        std::array::from_fn(|i| (after[i].0 - before[i].0, after[i].1 - before[i].1))
    });
    let script = format!(
        "
import socket
s = socket.create_connection(('192.0.2.1', 5000))
s.recv(1)
s.sendall(bytes({size}))
left = {size}
while left:
    left -= len(s.recv(1 << 20))
"
    );
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let bundle = Bundle::new(&kata, root, &["python3", "-c", &script]);
    let output = run_bundle(&kata, bundle, |config| set_network(config, Some(&wire.path())));
    assert_eq!(output.code, 0, "{}", output.stderr());
    let counts: [(u64, u64); 2] = counts.join().unwrap();
    for (way, (packets, bytes)) in ["from the guest", "to the guest"].into_iter().zip(counts) {
        assert!(bytes > 20 << 20, "{way}: {bytes} bytes");
        // Acknowledgements count too, so that the segments themselves are larger still. The MTU is 1400.
        assert!(bytes / packets > 3000, "{way}: {packets} packets of {bytes} bytes");
    }
}

#[test]
fn a_kernel_parameter_that_the_host_refuses_is_named_by_create() {
    let Some(kata) = Kata::installed() else { return };
    for runtime in [&Kata::oracle(), &kata] {
        let Some(root) = debian() else { return };
        let mut bundle = Bundle::new(&kata, root, &["true"]);
        bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "0"});
        bundle.write();
        let id = unique("refused");
        let output = run(runtime.command(&["create", "--bundle", bundle.path(), &id]), b"");
        let said = output.stderr();
        let names = said.contains("net/ipv4/ip_default_ttl") && said.contains("nvalid argument");
        assert!(output.code != 0 && names, "{:?}: {said}", runtime.program());
    }
}

/// runc sets them in any order, and fails by chance.
#[test]
fn kernel_parameters_that_the_kernel_checks_against_each_other_are_set() {
    const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let wire = wire();
    let (Some(kata), Some(root)) = (Kata::installed(), debian()) else { return };
    let bundle = Bundle::new(&kata, root, &["cat", PORTS]);
    let output = run_bundle(&kata, bundle, |config| {
        set_network(config, Some(&wire.path()));
        config["linux"]["sysctl"] = json!({
            "net.ipv4.ip_local_port_range": "1000 2000",
            "net.ipv4.ip_unprivileged_port_start": "0",
        });
    });
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert_eq!(output.stdout(), "1000\t2000\n", "in the guest");
    assert_eq!(ip(&["netns", "exec", &wire.name, "cat", PORTS]), "1000\t2000\n", "on the host");
}

#[test]
fn kernel_parameters_of_the_namespace_are_the_guests() {
    let wire = wire();
    let set = ["net.core.somaxconn=321", "net.ipv4.ip_local_port_range=2000 3000"];
    for parameter in set.into_iter().chain(["net.ipv4.conf.all.rp_filter=2"]) {
        ip(&["netns", "exec", &wire.name, "sysctl", "-qw", parameter]);
    }
    // What the guest's kernel does not know is no reason not to start.
    let known = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
    if known.split_whitespace().any(|name| name == "bbr") {
        let parameter = "net.ipv4.tcp_congestion_control=bbr";
        ip(&["netns", "exec", &wire.name, "sysctl", "-qw", parameter]);
    }
    let script = "cd /proc/sys/net; cat core/somaxconn ipv4/conf/all/rp_filter; \
        set -- $(cat ipv4/ip_local_port_range); echo $*";
    let Some(output) = run_in(&wire, script) else { return };
    assert_eq!(output.stdout(), "321\n2\n2000 3000\n", "{}", output.stderr());
}

#[test]
fn kernel_parameters_of_a_link_are_those_of_the_guests_link() {
    let wire = wire();
    let set = [
        // The one for all links reaches each, and one of them is set back.
        ("ipv4/conf/all/forwarding", "1"),
        ("ipv4/conf/eth0/forwarding", "0"),
        ("ipv4/conf/eth0/arp_filter", "1"),
        ("ipv4/conf/eth0/arp_notify", "1"),
        ("ipv4/conf/lo/arp_ignore", "1"),
        ("ipv6/conf/eth0/accept_ra", "0"),
        ("ipv4/neigh/eth0/base_reachable_time_ms", "20000"),
        ("ipv6/neigh/eth0/mcast_solicit", "5"),
    ];
    for (name, value) in set {
        let parameter = format!("net/{name}={value}");
        ip(&["netns", "exec", &wire.name, "sysctl", "-qw", &parameter]);
    }
    // Not carried: the guest's link never makes an address up.
    let mode = "net/ipv6/conf/eth0/addr_gen_mode=3";
    ip(&["netns", "exec", &wire.name, "sysctl", "-qw", mode]);
    let names: Vec<&str> = set.iter().map(|(name, _)| *name).collect();
    let script = format!(
        "cd /proc/sys/net; grep -H . {} ipv4/conf/lo/arp_filter ipv6/conf/eth0/addr_gen_mode",
        names.join(" ")
    );
    let Some(output) = run_in(&wire, &script) else { return };
    let mut expected: String =
        set.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    expected += "ipv4/conf/lo/arp_filter:0\nipv6/conf/eth0/addr_gen_mode:1\n";
    assert_eq!(output.stdout(), expected, "{}", output.stderr());
}
