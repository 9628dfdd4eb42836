//! A network namespace as an engine makes one: a link in it, whose other end is in a namespace of a peer.

use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let wire = Self { name: format!("kt-{unique}"), peer: format!("kp-{unique}") };
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
        wire
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
