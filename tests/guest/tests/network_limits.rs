//! Links that are held to a rate.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::{Duration, Instant},
};

use kata_guest_tests::{
    Bundle, Container, HostProcess, Kata, Output, Wire, debian, run_bundle, set_network, snapshot,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};
use serde_json::{Value, json};

const SIZE: usize = 3_000_000;

/// A second and half a second for a million bytes.
const INBOUND: (&str, Duration) = ("8000", Duration::from_millis(1000));
const OUTBOUND: (&str, Duration) = ("16000", Duration::from_millis(500));

/// Gets what the peer sends, says so, and sends as much.
const CLIENT: &str = "
import socket
s = socket.create_connection(('192.0.2.1', 5000))
left = 3000000
while left:
    left -= len(s.recv(min(left, 65536)))
s.sendall(b'!')
s.sendall(bytes(3000000))
s.recv(1)
";

fn wire() -> Wire {
    Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"])
}

fn limits() -> Value {
    json!({
        "io.katacontainers.network.inbound_kbit_s": INBOUND.0,
        "io.katacontainers.network.outbound_kbit_s": OUTBOUND.0,
    })
}

/// How long the peer needs to send, and then to receive.
fn times(wire: &Wire, annotations: Value) -> Option<(Duration, Duration)> {
    let (kata, root) = (Kata::installed()?, debian()?);
    let server = wire.beside(|| TcpListener::bind(("0.0.0.0", 5000)).unwrap()).join().unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let begun = Instant::now();
        stream.write_all(&vec![0; SIZE]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let sent = begun.elapsed();
        stream.read_exact(&mut vec![0; SIZE]).unwrap();
        (sent, begun.elapsed() - sent)
    });
    let mut bundle = Bundle::new(&kata, root, &["python3", "-c", CLIENT]);
    bundle.config["annotations"] = annotations;
    let output = run_bundle(&kata, bundle, |config| set_network(config, Some(&wire.path())));
    assert_eq!(output.code, 0, "{}", output.stderr());
    Some(peer.join().unwrap())
}

/// Three times what a million bytes take, less what a bucket holds and a fifth.
fn least((_, million): (&str, Duration)) -> Duration {
    million * 3 - million / 5 - million / 5
}

#[test]
fn each_way_has_its_own_limit_and_the_namespace_has_none_afterwards() {
    let wire = wire();
    let before = snapshot(Some(&wire.name));
    let Some((inbound, outbound)) = times(&wire, limits()) else { return };
    assert!(inbound > least(INBOUND), "{inbound:?} to the guest");
    assert!(outbound > least(OUTBOUND), "{outbound:?} from the guest");
    assert_eq!(snapshot(Some(&wire.name)), before);
    println!("{inbound:?} to the guest, {outbound:?} from it");
}

fn limited(wire: &Wire) -> Option<(Kata, Bundle)> {
    let (kata, root) = (Kata::installed()?, debian()?);
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    bundle.config["annotations"] = limits();
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    Some((kata, bundle))
}

#[test]
fn state_says_what_is_held_to_which_rate() {
    let wire = wire();
    let Some((kata, bundle)) = limited(&wire) else { return };
    let container = Container::started(&kata, &bundle, "limited");
    let note = container.state()["kata"]["network"].to_string();
    let told = "eth0 (veth): redirected to a tap, at most 8000 kbit/s to the guest, at most 16000 kbit/s from the guest";
    assert!(note.contains(told), "{note}");
    let there = wire.tc(&["qdisc", "show"]);
    for rate in ["8Mbit", "16Mbit"] {
        assert!(there.contains(&format!("rate {rate}")), "{there}");
    }
}

#[test]
fn a_link_that_comes_later_and_cannot_be_limited_stays_outside_and_state_says_why() {
    let wire = wire();
    let Some((kata, bundle)) = limited(&wire) else { return };
    let container = Container::started(&kata, &bundle, "later");
    // Nobody looks at the link before it has its discipline.
    container.signal_host(HostProcess::Shim, Signal::STOP);
    wire.ip(&["link", "add", "aside", "type", "veth", "peer", "name", "x", "netns", &wire.peer]);
    wire.tc(&["qdisc", "add", "dev", "aside", "root", "handle", "1:", "htb"]);
    container.signal_host(HostProcess::Shim, Signal::CONT);
    container.network_told(
        "aside (veth): not in the guest: aside has a queueing discipline of its own (htb)",
    );
    wire.tc(&["qdisc", "delete", "dev", "aside", "root"]);
    wire.ip(&["link", "set", "aside", "up"]);
    container.network_told("aside (veth): redirected to a tap, at most");
}

#[test]
fn a_limit_of_a_sandbox_that_died_is_gone_with_the_next_one() {
    let wire = wire();
    let before = snapshot(Some(&wire.name));
    let Some((kata, mut bundle)) = limited(&wire) else { return };
    let died = Container::started(&kata, &bundle, "died");
    let vmm = died.state()["kata"]["vmmPid"].as_i64().unwrap();
    let vmm = Pid::from_raw(i32::try_from(vmm).unwrap()).unwrap();
    let vmm = pidfd_open(vmm, PidfdFlags::empty()).unwrap();
    died.signal_host(HostProcess::Shim, Signal::KILL);
    died.wait();
    // With it goes its tap.
    let ceiling = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&vmm, PollFlags::IN)], Some(&ceiling)).unwrap(), 1);
    assert!(wire.tc(&["qdisc", "show", "dev", "eth0"]).contains("tbf"));
    bundle.config["annotations"] = json!({});
    bundle.write();
    let next = Container::started(&kata, &bundle, "next");
    let there = wire.tc(&["qdisc", "show", "dev", "eth0"]);
    assert!(!there.contains("tbf"), "{there}");
    for container in [next, died] {
        let deleted = container.call(&["delete", "--force"]);
        assert_eq!(deleted.code, 0, "{}", deleted.stderr());
    }
    assert_eq!(snapshot(Some(&wire.name)), before);
}

fn run_limited(wire: &Wire) -> Option<Output> {
    let (kata, root) = (Kata::installed()?, debian()?);
    let mut bundle = Bundle::new(&kata, root, &["true"]);
    bundle.config["annotations"] = limits();
    Some(run_bundle(&kata, bundle, |config| set_network(config, Some(&wire.path()))))
}

#[test]
fn a_discipline_of_somebodys_own_stays_and_the_limit_is_refused_by_name() {
    let wire = wire();
    wire.tc(&["qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb"]);
    let before = snapshot(Some(&wire.name));
    let Some(output) = run_limited(&wire) else { return };
    output.assert_one_line(&["eth0", "htb", "network.outbound_kbit_s"]);
    assert_eq!(snapshot(Some(&wire.name)), before);
    wire.tc(&["qdisc", "delete", "dev", "eth0", "root"]);
    let Some(output) = run_limited(&wire) else { return };
    assert_eq!(output.code, 0, "without it: {}", output.stderr());
}
