//! Two network namespaces with a veth pair between them: a pod's, and that of a peer.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::super::stand::Stand;
use crate::process::Run;

/// The pod's addresses.
pub const V4: &str = "10.77.0.2";
pub const V6: &str = "fd77::2";
const PEER: [&str; 2] = ["10.77.0.1/24", "fd77::1/64"];
const POD: [&str; 2] = ["10.77.0.2/24", "fd77::2/64"];

/// The pod's link.
pub const LINK: &str = "eth0";

#[derive(Debug)]
pub struct Scene {
    program: PathBuf,
    pod: String,
    peer: String,
}

impl Scene {
    /// The pod's link has its addresses, or leaves them to whoever is behind it.
    pub fn new(stand: &Stand, addressed: bool) -> Result<Self> {
        let id = std::process::id();
        let program = stand.root().join("bench");
        let scene = Self { program, pod: format!("kb-pod-{id}"), peer: format!("kb-peer-{id}") };
        for name in [&scene.pod, &scene.peer] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        scene.ip(&["link", "add", LINK, "type", "veth", "peer", "peer0", "netns", &scene.peer])?;
        let ends = [(&scene.pod, LINK, POD, addressed), (&scene.peer, "peer0", PEER, true)];
        for (name, link, addresses, addressed) in ends {
            for address in addresses.into_iter().filter(|_| addressed) {
                // Without duplicate address detection, which takes a second; IPv4 has none.
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                ip(&[&["-n", name, "address", "add", address, "dev", link], nodad].concat())?;
            }
            ip(&["-n", name, "link", "set", link, "up"])?;
        }
        Ok(scene)
    }

    /// `ip` in the pod's namespace.
    pub fn ip(&self, words: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.pod], words].concat())
    }

    /// `tc` in the pod's namespace.
    pub fn tc(&self, words: &str) -> Result<()> {
        Run::new("tc").args(["-n", &self.pod]).args(words.split(' ')).quietly().output().map(drop)
    }

    /// What a command says in the pod's namespace, whose `/sys` it sees.
    pub fn said(&self, words: &[&str]) -> Result<String> {
        let run = Run::new("ip").args(["netns", "exec", &self.pod]);
        run.args(words.iter().copied()).quietly().output()
    }

    /// Runs the benchmark's program as the peer; what it says.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let run = Run::new("ip").args(["netns", "exec", &self.peer]);
        run.args([&self.program]).args(words.iter().copied()).quietly().output()
    }

    /// One more link between pod and peer, by its number; the pod's address on it.
    pub fn add_link(&self, number: u8) -> Result<IpAddr> {
        let (link, peer_link) = (format!("eth{number}"), format!("peer{number}"));
        let mac = format!("02:00:00:00:78:{number:02x}");
        let [pod, peer] = [2, 1].map(|last| IpAddr::from([10, 78, number, last]));
        let pair = ["type", "veth", "peer", &peer_link, "netns", &self.peer];
        self.ip(&[&["link", "add", &link, "address", &mac], &pair[..]].concat())?;
        for (namespace, link, address) in [(&self.pod, &link, pod), (&self.peer, &peer_link, peer)]
        {
            ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", link])?;
            ip(&["-n", namespace, "link", "set", link, "up"])?;
        }
        // A question that nobody answers yet is asked again only a second later.
        let known = ["neighbour", "add", &pod.to_string(), "lladdr", &mac, "dev", &peer_link];
        ip(&[&["-n", &self.peer], &known[..]].concat())?;
        Ok(pod)
    }

    /// Does something on a thread in the pod's namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.pod, work)
    }

    /// The same in the peer's.
    pub fn inside_peer<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.peer, work)
    }

    /// Puts a container into the pod's namespace; of Kata's it has a card for its link, and no spare one.
    pub fn enter(&self, spec: &mut Value) {
        enter(&self.pod, spec);
    }

    /// The same for the peer's: another pod.
    pub fn enter_as_peer(&self, spec: &mut Value) {
        enter(&self.peer, spec);
    }
}

fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(path(namespace)).context("open a network namespace")?;
    let worked = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            kata_sys::network::enter(namespace.as_fd()).context("enter a network namespace")?;
            work()
        });
        worker.join()
    });
    worked.map_err(|_| anyhow!("a thread in a network namespace panicked"))?
}

fn enter(namespace: &str, spec: &mut Value) {
    spec["annotations"]["io.katacontainers.network.spare_nics"] = json!("0");
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": path(namespace) }));
    }
}

fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            if let Err(error) = ip(&["netns", "delete", name]) {
                eprintln!("xtask: {error:#}");
            }
        }
    }
}

fn ip(words: &[&str]) -> Result<()> {
    Run::new("ip").args(words.iter().copied()).quietly().output().map(drop)
}
