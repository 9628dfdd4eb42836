//! Network namespaces in which Kata may touch nothing, and those in which it may.
//!
//! Alone in its program: what it compares, others would change.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use kata_guest_tests::{
    Bundle, Container, Kata, Output, Wire, busybox, run_bundle, set_network, snapshot,
};

/// Runs nothing in a namespace.
fn run_at(path: Option<&str>) -> Option<Output> {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return None };
    let bundle = Bundle::new(&kata, root, &["ls", "/sys/class/net"]);
    Some(run_bundle(&kata, bundle, |config| set_network(config, path)))
}

fn wire() -> Wire {
    Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"])
}

#[test]
fn the_hosts_own_namespace_is_refused_and_left_alone() {
    let before = snapshot(None);
    let Some(output) = run_at(Some("/proc/self/ns/net")) else { return };
    output.assert_one_line(&["host's own network namespace"]);
    assert_eq!(snapshot(None), before, "after its path");
    // As engines say it: no namespace at all.
    let Some(output) = run_at(None) else { return };
    output.assert_one_line(&["linux.namespaces: refused: no network"]);
    assert_eq!(snapshot(None), before, "after --net=host");
    // And what is done to a namespace that may be touched does not show here.
    let Some(output) = run_at(Some(&wire().path())) else { return };
    assert_eq!((output.code, output.stdout().as_str()), (0, "eth0\nlo\n"), "{}", output.stderr());
    assert_eq!(snapshot(None), before, "after one in a namespace");
}

#[test]
fn a_namespace_with_a_container_of_runc_is_refused_and_left_alone() {
    let (Some(_), Some(root)) = (Kata::installed(), busybox()) else { return };
    let (runc, wire) = (Kata::oracle(), wire());
    let mut bundle = Bundle::new(&runc, root, &["sleep", "1000"]);
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    let neighbour = Container::started(&runc, &bundle, "neighbour");
    let before = snapshot(Some(&wire.name));
    let Some(output) = run_at(Some(&wire.path())) else { return };
    output.assert_one_line(&["of another container", &neighbour.pid.to_string()]);
    assert_eq!(snapshot(Some(&wire.name)), before);
    drop(neighbour);
    let Some(output) = run_at(Some(&wire.path())) else { return };
    assert_eq!(output.code, 0, "with the container gone: {}", output.stderr());
}

/// A program in the namespace, with the root and the pid namespace of the host.
fn helper(enter: &[&str]) -> Child {
    let mut command = Command::new(enter[0]);
    command.args(&enter[1..]).args(["sh", "-c", "echo in; exec sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child
}

#[test]
fn a_helper_and_an_admins_shell_do_not_count() {
    let wire = wire();
    let enter = format!("--net={}", wire.path());
    let mut others = [helper(&["nsenter", &enter]), helper(&["ip", "netns", "exec", &wire.name])];
    let output = run_at(Some(&wire.path()));
    for other in &mut others {
        other.kill().unwrap();
        other.wait().unwrap();
    }
    let Some(output) = output else { return };
    assert_eq!((output.code, output.stdout().as_str()), (0, "eth0\nlo\n"), "{}", output.stderr());
}

#[test]
fn a_namespace_belongs_to_one_sandbox_at_a_time() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let wire = wire();
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    let first = Container::started(&kata, &bundle, "first");
    let before = snapshot(Some(&wire.name));
    let Some(output) = run_at(Some(&wire.path())) else { return };
    output.assert_one_line(&["another sandbox"]);
    assert_eq!(snapshot(Some(&wire.name)), before, "the first one's redirect stands");
    drop(first);
    let Some(output) = run_at(Some(&wire.path())) else { return };
    assert_eq!(output.code, 0, "with the first gone: {}", output.stderr());
}

#[test]
fn a_container_that_is_older_than_an_upgrade_starts() {
    let (Some(kata), Some(root)) = (Kata::copied(), busybox()) else { return };
    let wire = wire();
    let mut bundle = Bundle::new(&kata, root, &["ls", "/sys/class/net"]);
    set_network(&mut bundle.config, Some(&wire.path()));
    bundle.write();
    let container = Container::create(&kata, &bundle, "older");
    let directory = kata.program().ancestors().nth(2).unwrap().join("libexec/kata");
    let (monitor, newer) = (directory.join("kata-monitor"), directory.join("newer"));
    fs::copy(&monitor, &newer).unwrap();
    fs::rename(&newer, &monitor).unwrap();
    container.must("start");
    assert_eq!(container.wait().0, 0);
}

#[test]
fn an_engines_qdisc_and_filter_stay() {
    let wire = wire();
    wire.tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
    let filter = "filter add dev eth0 ingress pref 7 protocol ip u32 match ip protocol 253 0xff";
    wire.tc(&filter.split(' ').collect::<Vec<_>>());
    let show = || {
        wire.tc(&["qdisc", "show", "dev", "eth0"])
            + &wire.tc(&["filter", "show", "dev", "eth0", "ingress"])
    };
    let before = show();
    let Some(output) = run_at(Some(&wire.path())) else { return };
    assert_eq!(output.code, 0, "{}", output.stderr());
    assert_eq!(show(), before);
}

#[test]
fn a_snapshot_shows_whatever_is_changed() {
    let wire = wire();
    let mut before = snapshot(Some(&wire.name));
    let mut changed = |what: &str| {
        let now = snapshot(Some(&wire.name));
        assert_ne!(before, now, "{what}");
        before = now;
    };
    for command in [
        "link add other type veth peer name another",
        "link set eth0 mtu 1300",
        "address add 192.0.2.3/32 dev eth0",
        "route add 203.0.113.0/24 via 192.0.2.1 table 77",
        "-6 route add 2001:db8:1::/64 dev eth0",
        "rule add from 192.0.2.3 table 77",
        "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 nud permanent dev eth0",
    ] {
        wire.ip(&command.split(' ').collect::<Vec<_>>());
        changed(command);
    }
    wire.tc(&["qdisc", "add", "dev", "eth0", "ingress"]);
    changed("qdisc");
    if Command::new("nft").arg("--version").output().is_ok() {
        let add = ["netns", "exec", &wire.name, "nft", "add", "table", "inet", "t"];
        kata_guest_tests::ip(&add);
        changed("nft");
    }
}
