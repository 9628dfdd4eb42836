//! Each kind of link, at each moment at which an engine may make it.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
};

use kata_guest_tests::{
    Bundle, Container, Kata, Wire, debian, has_kind, ip, repetitions, set_network,
};

/// Megabytes each way, in a full run.
const MEGABYTES: usize = 10;

/// When the links are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeCreate,
    BetweenCreateAndStart,
    AfterStart,
}

/// A way to connect a namespace.
struct Kind {
    name: &'static str,
    /// What the kernel has to know for it beside pairs and macvlan.
    needs: Option<&'static str>,
    /// What `ip` is asked for in the container's namespace, and in the peer's.
    make: &'static [&'static str],
    peer: &'static [&'static str],
    /// Addresses of the peer to be reached, with the largest ping's payload.
    reach: &'static [(&'static str, u32)],
    /// Links that there are then.
    links: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "veth",
        needs: None,
        make: &[
            "link add eth0 type veth peer name peer0 netns PEER",
            "address add 192.0.2.2/24 dev eth0",
            "link set eth0 up",
            "route add default via 192.0.2.1",
        ],
        peer: &["address add 192.0.2.1/24 dev peer0", "link set peer0 up"],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "macvlan",
        needs: None,
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "link add peer0 link lower type macvlan mode bridge",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link lower netns OWN type macvlan mode bridge",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "two veths",
        needs: None,
        make: &[
            "link add eth0 type veth peer name peer0 netns PEER",
            "link add net1 type veth peer name peer1 netns PEER",
            "address add 192.0.2.2/24 dev eth0",
            "address add 198.51.100.2/24 dev net1",
            "link set eth0 up",
            "link set net1 up",
        ],
        peer: &[
            "address add 192.0.2.1/24 dev peer0",
            "address add 198.51.100.1/24 dev peer1",
            "link set peer0 up",
            "link set peer1 up",
        ],
        reach: &[("192.0.2.1", 1472), ("198.51.100.1", 1472)],
        links: "eth0 lo net1",
    },
    Kind {
        name: "IPv6 alone",
        needs: None,
        make: &[
            "link add eth0 type veth peer name peer0 netns PEER",
            "address add 2001:db8::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 2001:db8::1",
        ],
        peer: &["address add 2001:db8::1/64 dev peer0 nodad", "link set peer0 up"],
        reach: &[("2001:db8::1", 1452)],
        links: "eth0 lo",
    },
    Kind {
        name: "MTU 9000",
        needs: None,
        make: &[
            "link add eth0 mtu 9000 type veth peer name peer0 mtu 9000 netns PEER",
            "address add 192.0.2.2/24 dev eth0",
            "link set eth0 up",
        ],
        peer: &["address add 192.0.2.1/24 dev peer0", "link set peer0 up"],
        reach: &[("192.0.2.1", 8972)],
        links: "eth0 lo",
    },
    Kind {
        name: "ipvlan L2",
        needs: Some("ipvlan"),
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "link add peer0 link lower type ipvlan mode l2",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link lower netns OWN type ipvlan mode l2",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "ipvlan L3",
        needs: Some("ipvlan"),
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "link add peer0 link lower type ipvlan mode l3",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link lower netns OWN type ipvlan mode l3",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "VLAN",
        needs: Some("vlan id 5"),
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "link add peer0 link other type vlan id 5",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link lower netns OWN type vlan id 5",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "macvlan on a VLAN",
        needs: Some("vlan id 5"),
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link set lower up",
            "link set other up",
            "link add via5 link lower type vlan id 5",
            "link set via5 up",
            "link add peer0 link via5 type macvlan mode bridge",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link via5 netns OWN type macvlan mode bridge",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind {
        name: "macvlan on a bond",
        needs: Some("bond"),
        make: &["address add 192.0.2.2/24 dev eth0", "link set eth0 up"],
        peer: &[
            "link add lower type veth peer name other",
            "link add bond5 type bond mode active-backup",
            "link set lower master bond5",
            "link set other up",
            "link set bond5 up",
            "link add peer0 link bond5 type macvlan mode bridge",
            "address add 192.0.2.1/24 dev peer0",
            "link set peer0 up",
            "link add eth0 link bond5 netns OWN type macvlan mode bridge",
        ],
        reach: &[("192.0.2.1", 1472)],
        links: "eth0 lo",
    },
    Kind { name: "no link", needs: None, make: &[], peer: &[], reach: &[], links: "lo" },
];

/// Exchanges with the peer what it can check: TCP that it opens and that it is asked for, and datagrams.
const GUEST: &str = "
import hashlib, socket, sys, time
host, size = sys.argv[1], int(sys.argv[2])
period = bytes((i + i // 251 * 7) % 251 for i in range(251 * 251))
data = (period * (size // len(period) + 1))[:size]
def connect():
    for _ in range(300):
        try:
            return socket.create_connection((host, 5000), 1)
        except OSError:
            time.sleep(0.1)
    sys.exit('cannot connect')
server = socket.create_server(('::', 6000), family=socket.AF_INET6, dualstack_ipv6=True)
c = connect()
c.settimeout(60)
c.sendall(size.to_bytes(8, 'little') + data)
back = server.accept()[0]
got = bytearray()
while piece := back.recv(65536):
    got.extend(piece)
assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), 'what came back'
u = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(1)
for _ in range(30):
    try:
        u.sendto(data[:1200], (host, 5000))
        assert u.recv(2000) == data[:1200]
        break
    except TimeoutError:
        pass
else:
    sys.exit('no datagram came back')
print('done')
";

/// Sends all that it gets back over a connection of its own; and datagrams.
fn serve(wire: &Wire, connections: usize) {
    let sockets = wire.beside(|| {
        let any = (Ipv6Addr::UNSPECIFIED, 5000);
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    let (listener, datagrams) = sockets.join().unwrap();
    wire.beside(move || {
        for _ in 0..connections {
            let (mut stream, from) = listener.accept().unwrap();
            let mut size = [0; 8];
            stream.read_exact(&mut size).unwrap();
            let mut data = vec![0; usize::try_from(u64::from_le_bytes(size)).unwrap()];
            stream.read_exact(&mut data).unwrap();
            let mut back = TcpStream::connect(SocketAddr::new(from.ip(), 6000)).unwrap();
            back.write_all(&data).unwrap();
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        // Until the process ends: who knows how many are lost and sent again.
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            datagrams.send_to(&buffer[..length], from).ok();
        }
    });
}

fn connect(kind: &Kind, wire: &Wire) {
    let run = |namespace: &str, command: &str| {
        let command = command.replace("PEER", &wire.peer).replace("OWN", &wire.name);
        ip(&[&["-n", namespace], &command.split(' ').collect::<Vec<_>>()[..]].concat());
    };
    // The peer's side of a pair is there with ours; a macvlan is made from outside.
    let (pairs, rest): (Vec<&&str>, Vec<&&str>) =
        kind.make.iter().partition(|command| command.starts_with("link add"));
    pairs.iter().for_each(|command| run(&wire.name, command));
    kind.peer.iter().for_each(|command| run(&wire.peer, command));
    rest.iter().for_each(|command| run(&wire.name, command));
}

fn works(kind: &Kind, container: &Container<'_>) {
    let size = (repetitions(MEGABYTES) << 20).to_string();
    for (address, payload) in kind.reach {
        let exchanged = container.exec(&["python3", "-c", GUEST, address, &size], b"");
        let said = (exchanged.code, exchanged.stdout());
        assert_eq!(said, (0, "done\n".into()), "{}: {}", kind.name, exchanged.stderr());
        let payload = payload.to_string();
        let ping = ["ping", "-M", "do", "-c", "3", "-i", "0.2", "-W", "5", "-s", &payload, address];
        let ping = container.exec(&ping, b"");
        assert_eq!(ping.code, 0, "{}: {}{}", kind.name, ping.stdout(), ping.stderr());
    }
    let links = container.exec(&["sh", "-c", "echo $(ls /sys/class/net)"], b"").stdout();
    assert_eq!(links.trim(), kind.links, "{}", kind.name);
}

/// Routes of both families, but for the taps'; those of each link's own network (fe80::) came in the order of the carriers.
const ROUTES: &str = "{ ip -4 route; ip -6 route | sort; } | grep -v ' dev kata' | sed 's/ *$//'";

/// The routes that the namespace has, in the guest: the last of them follows the first in its time.
fn has_the_routes(kind: &Kind, wire: &Wire, container: &Container<'_>) {
    let routes = format!("ip netns exec {} sh -c \"{ROUTES}\"", wire.name);
    let there = Command::new("sh").args(["-c", &routes]).output().unwrap();
    let there = String::from_utf8(there.stdout).unwrap();
    let wait = format!(
        "for i in $(seq 300); do [ \"$({ROUTES})\" = \"$1\" ] && exit; sleep 0.1; done; {ROUTES}; exit 1"
    );
    let same = container.exec(&["sh", "-c", &wait, "sh", there.trim_end()], b"");
    assert_eq!(same.code, 0, "{}: {there}in the guest: {}", kind.name, same.stdout());
}

fn matrix(moment: Moment) {
    let (Some(kata), Some(_)) = (Kata::installed(), debian()) else { return };
    for kind in KINDS.iter().filter(|kind| kind.needs.is_none_or(has_kind)) {
        let wire = Wire::bare();
        let Some(root) = debian() else { return };
        let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
        // Two links that appear need two cards.
        bundle.config["annotations"] = serde_json::json!({
            "io.katacontainers.network.spare_nics": "2",
        });
        set_network(&mut bundle.config, Some(&wire.path()));
        bundle.write();
        if moment == Moment::BeforeCreate {
            connect(kind, &wire);
        }
        let container = Container::create(&kata, &bundle, "matrix");
        if moment == Moment::BetweenCreateAndStart {
            connect(kind, &wire);
        }
        container.must("start");
        if moment == Moment::AfterStart {
            connect(kind, &wire);
        }
        serve(&wire, kind.reach.len());
        works(kind, &container);
        has_the_routes(kind, &wire, &container);
    }
}

#[test]
fn links_that_are_there_before_create() {
    matrix(Moment::BeforeCreate);
}

#[test]
fn links_that_come_between_create_and_start() {
    matrix(Moment::BetweenCreateAndStart);
}

#[test]
fn links_that_come_after_start() {
    matrix(Moment::AfterStart);
}
