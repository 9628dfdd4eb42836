//! CNI's own plugins below containerd: each claim from the pod's side and from the host's, on runc too.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kata_engine_tests::{
    Netns,
    containerd::{
        Container, Containerd, KATA, Pod, RUNC,
        cni::host_local,
        config,
        runtime::{PortMapping, Protocol},
    },
};
use kata_guest_tests::has_kind;
use serde_json::{Value, json};

/// Where the engine's namespace has an address beside the pod's.
const PEER: &str = "10.91.0.1";
const SUBNET: &str = "10.91.0.0/24";

/// What a pod of one runtime sees, without its own address.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    links: String,
    mtu: String,
    routes: String,
    neighbour_is_own: bool,
    parameters: String,
}

/// Says back to each connection what it hears, until it has no more to say.
fn echo(network: &Netns) -> JoinHandle<()> {
    let listener = network.beside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5000)).unwrap());
    let listener = listener.join().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        stream.write_all(&said).unwrap();
    })
}

/// What a server says to a connection from the engine's namespace.
fn ask(network: &Netns, address: String) -> String {
    let asked = network.beside(move || {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut answer = String::new();
            // A port of the host is there before its server is.
            let said = TcpStream::connect(&address)
                .and_then(|mut stream| stream.read_to_string(&mut answer));
            match said {
                Ok(_) if !answer.is_empty() => return answer,
                _ if Instant::now() > deadline => panic!("{address}: {said:?}"),
                _ => {}
            }
        }
    });
    asked.join().unwrap()
}

fn ping_from_host(network: &Netns, address: &str) {
    let mut ping = network.command("ping");
    let said = ping.args(["-c", "3", "-i", "0.2", "-W", "5", address]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// Both ways, and what it looks like.
fn look(engine: &Containerd, pod: &Pod, container: &Container<'_>) -> Seen {
    let address = pod.status().network.ip.clone();
    ping_from_host(engine.network(), &address);
    assert_eq!(ask(engine.network(), format!("{address}:80")), "hello\n");
    let server = echo(engine.network());
    let script = "head -c 3000000 /dev/zero | nc PEER 5000 | wc -c".replace("PEER", PEER);
    assert_eq!(container.output(&script), "3000000");
    server.join().unwrap();
    container.output(&format!("ping -c 3 -W 5 {PEER}"));
    let own = container.output("cat /sys/class/net/eth0/address");
    Seen {
        links: container.output("echo $(ls /sys/class/net)"),
        mtu: container.output("cat /sys/class/net/eth0/mtu"),
        parameters: container.output(
            "cd /proc/sys/net; \
             cat core/somaxconn ipv4/conf/eth0/arp_filter ipv4/conf/eth0/tag ipv4/neigh/eth0/app_solicit",
        ),
        routes: container.output("ip route").replace(&address, "OWN"),
        neighbour_is_own: engine.network().ip(&["neighbour", "show", &address]).contains(&own),
    }
}

/// Runs a pod with these plugins below each runtime; `make` are links that the host has for them.
fn works(make: &[&str], plugins: &[Value]) {
    let Some(engine) = Containerd::start_with(plugins) else { return };
    for command in make {
        engine.network().ip(&command.split(' ').collect::<Vec<_>>());
    }
    let mut seen = Vec::new();
    let mut left = Vec::new();
    for handler in [RUNC, KATA] {
        let mut config = config(&engine);
        let port = PortMapping {
            protocol: Protocol::TCP.into(),
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        };
        config.port_mappings = vec![port];
        let asked = ("net.ipv4.conf.eth0.tag".to_owned(), "7".to_owned());
        config.linux.as_mut().unwrap().sysctls.extend([asked]);
        for way in ["ingress", "egress"] {
            config.annotations.insert(format!("kubernetes.io/{way}-bandwidth"), "100M".into());
        }
        let pod = Pod::run_with(&engine, handler, config).unwrap();
        let container = pod.start(pod.script("while :; do echo hello | nc -l -p 80; done"));
        seen.push(look(&engine, &pod, &container));
        if plugins.iter().any(|plugin| plugin["type"] == "portmap") {
            assert_eq!(ask(engine.network(), format!("{PEER}:8080")), "hello\n");
        }
        pod.remove();
        left.push(engine.network().snapshot());
    }
    assert_eq!(seen[0], seen[1], "runc's pod and Kata's");
    assert_eq!(left[0], left[1], "what runc's pod leaves, and Kata's");
}

/// A link to stand on, and another one on it for the host to be reached at.
fn beside(kind: &str) -> [String; 5] {
    [
        "link add lower type veth peer name other".to_owned(),
        "link set other up".to_owned(),
        "link set lower up".to_owned(),
        format!("link add peer0 link {kind}"),
        format!("address add {PEER}/24 dev peer0"),
    ]
}

fn works_beside(kind: &str, plugin: &Value) {
    let mut make = beside(kind).to_vec();
    make.push("link set peer0 up".to_owned());
    let make: Vec<&str> = make.iter().map(String::as_str).collect();
    works(&make, std::slice::from_ref(plugin));
}

#[test]
fn a_bridge_with_ports_bandwidth_and_tuning() {
    works(
        &[],
        &[
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "mtu": 1450,
                "ipam": host_local(SUBNET),
            }),
            json!({
                "type": "tuning", "mac": "02:00:00:00:be:ef", "mtu": 1400,
                "sysctl": {
                    "net.core.somaxconn": "500",
                    "net.ipv4.conf.IFNAME.arp_filter": "1",
                    "net.ipv4.neigh.IFNAME.app_solicit": "3",
                },
            }),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        ],
    );
}

#[test]
fn a_pair_with_routes_to_the_host_alone() {
    works(&[], &[json!({"type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": host_local(SUBNET)})]);
}

#[test]
fn macvlan() {
    works_beside(
        "lower type macvlan mode bridge",
        &json!({"type": "macvlan", "master": "lower", "mode": "bridge", "ipam": host_local(SUBNET)}),
    );
}

#[test]
fn ipvlan_by_frames_and_by_packets() {
    for mode in ["l2", "l3"].into_iter().filter(|_| has_kind("ipvlan")) {
        works_beside(
            &format!("lower type ipvlan mode {mode}"),
            &json!({"type": "ipvlan", "master": "lower", "mode": mode, "ipam": host_local(SUBNET)}),
        );
    }
}

#[test]
fn vlan() {
    if !has_kind("vlan id 5") {
        return;
    }
    works_beside(
        "other type vlan id 5",
        &json!({"type": "vlan", "master": "lower", "vlanId": 5, "ipam": host_local(SUBNET)}),
    );
}

#[test]
fn a_device_of_the_host() {
    works(
        &[
            "link add given type veth peer name peer0",
            "address add 10.91.0.1/24 dev peer0",
            "link set peer0 up",
        ],
        &[json!({"type": "host-device", "device": "given", "ipam": host_local(SUBNET)})],
    );
}
