//! A network namespace as an engine makes one: a link in it, whose other end is in a namespace of a peer.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::{ceiling, unique};

/// Two namespaces with a veth pair between them. Dropping it removes both.
#[derive(Debug)]
pub struct Wire {
    /// Name of the container's namespace.
    pub name: String,
    /// Name of the peer's namespace.
    pub peer: String,
}

impl Wire {
    /// The two namespaces, with nothing but loopback.
    pub fn bare() -> Self {
        let wire = Self { name: unique("kt"), peer: unique("kp") };
        for name in [&wire.name, &wire.peer] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        wire
    }

    /// `eth0` with these addresses in the container's namespace, `peer0` with those in the peer's; MTU 1400.
    pub fn new(addresses: &[&str], peers: &[&str]) -> Self {
        let wire = Self::bare();
        ip(&[
            "-n", &wire.name, "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name",
            "peer0", "mtu", "1400", "netns", &wire.peer,
        ]);
        for (name, link, addresses) in
            [(&wire.name, "eth0", addresses), (&wire.peer, "peer0", peers)]
        {
            for address in addresses {
                // Without nodad an IPv6 address can't be used for a second.
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                ip(&[&["-n", name, "address", "add", address, "dev", link], nodad].concat());
            }
            ip(&["-n", name, "link", "set", link, "up"]);
        }
        wire.await_carrier();
        wire
    }

    /// Waits for the route that comes with the carrier, of which the kernel tells up to a second later: it is not to come
    /// between two looks at the namespace.
    fn await_carrier(&self) {
        // The kernel, or whoever set up this host, may do without IPv6: no route comes then.
        let disabled =
            self.inside(|| fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/disable_ipv6"));
        if !disabled.join().unwrap().is_ok_and(|disabled| disabled.trim() == "0") {
            return;
        }
        let deadline = Instant::now() + ceiling(Duration::from_secs(60));
        while !self.ip(&["-6", "route", "show", "dev", "eth0"]).contains("fe80::/64") {
            assert!(Instant::now() < deadline, "eth0 gets no carrier");
        }
    }

    /// A link of one more network, 10.NETWORK.0.0/24, as `docker network connect` makes it: its MAC comes from its address.
    pub fn connect(&self, name: &str, network: u8) {
        let (peer, far) = (&self.peer, format!("p{name}"));
        let mac = format!("02:42:0a:{network:02x}:00:02");
        let near = ["link", "add", name, "address", &mac, "type", "veth"];
        self.ip(&[&near[..], &["peer", "name", &far, "netns", peer]].concat());
        ip(&["-n", peer, "address", "add", &format!("10.{network}.0.1/24"), "dev", &far]);
        ip(&["-n", peer, "link", "set", &far, "up"]);
        self.ip(&["address", "add", &format!("10.{network}.0.2/24"), "dev", name]);
        self.ip(&["link", "set", name, "up"]);
    }

    /// Path of the container's namespace.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// `ip` in the container's namespace.
    pub fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// `tc` in the container's namespace.
    pub fn tc(&self, arguments: &[&str]) -> String {
        said(Command::new("tc").args(["-n", &self.name]).args(arguments))
    }

    /// Runs something in the peer's namespace, on a thread of its own.
    pub fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        beside(&self.peer, work)
    }

    /// Runs something in the container's namespace, on a thread of its own.
    pub fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        beside(&self.name, work)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in [&self.name, &self.peer] {
            // Dropped while a test fails, too: one that can't be removed is no reason to abort.
            Command::new("ip").args(["netns", "delete", name]).status().ok();
        }
    }
}

/// Runs something in a named network namespace, on a thread of its own.
pub fn beside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    thread::spawn(move || {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).unwrap();
        work()
    })
}

/// True when the kernel of this host knows a kind of link; otherwise says SKIP with it.
pub fn has_kind(kind: &str) -> bool {
    let wire = Wire::bare();
    wire.ip(&["link", "add", "lower", "type", "veth", "peer", "name", "other"]);
    let add = format!("link add probe link lower type {kind}");
    let mut probe = Command::new("ip");
    let there =
        probe.args(["-n", &wire.name]).args(add.split(' ')).output().unwrap().status.success();
    if !there {
        println!("SKIP this kernel has no such kind of link: {kind}");
    }
    there
}

/// `ip`, which has to succeed.
pub fn ip(arguments: &[&str]) -> String {
    said(Command::new("ip").args(arguments))
}

pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {error}");
    out
}

/// Puts the container into the network namespace at a path, or into none.
pub fn set_network(config: &mut Value, path: Option<&str>) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.extend(path.map(|path| json!({"type": "network", "path": path})));
}
