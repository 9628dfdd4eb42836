//! Containers in a network namespace whose peer is at hand.

use std::process::Command;

use serde_json::Value;

use crate::{Bundle, Container, Kata, Wire, debian, set_network, snapshot};

/// What a container in the namespace of a wire is made of.
#[derive(Debug)]
pub struct Wired {
    /// The installed Kata.
    pub kata: Kata,
    /// Written.
    pub bundle: Bundle,
    /// Its namespace, and the peer's.
    pub wire: Wire,
}

impl Wired {
    /// Debian's root with a program, in a namespace that is made only where Kata is installed.
    pub fn new(wire: impl FnOnce() -> Wire, program: &[&str], annotations: Value) -> Option<Self> {
        let (kata, root) = (Kata::installed()?, debian()?);
        let wire = wire();
        let mut bundle = Bundle::new(&kata, root, program);
        bundle.config["annotations"] = annotations;
        set_network(&mut bundle.config, Some(&wire.path()));
        bundle.write();
        Some(Self { kata, bundle, wire })
    }

    /// A container that runs.
    pub fn start(&self, id: &str) -> Container<'_> {
        Container::started(&self.kata, &self.bundle, id)
    }

    /// A container that runs, whose shim has a fault.
    pub fn faulty(&self, id: &str, fault: &str) -> Container<'_> {
        let change = |command: &mut Command| _ = command.env("KATA_FAULT", fault);
        let container = Container::create_with(&self.kata, &self.bundle, id, change);
        container.must("start");
        container
    }

    /// `ip` in the container's namespace, its words in one.
    pub fn ip(&self, command: &str) -> String {
        self.wire.ip(&command.split(' ').collect::<Vec<_>>())
    }

    /// What the namespace has, to be compared with what it has later.
    pub fn snapshot(&self) -> Vec<String> {
        snapshot(Some(&self.wire.name))
    }

    /// Removes a container that runs; nothing is left, and the namespace is as it was before.
    pub fn ends_as_before(&self, container: Container<'_>, before: &[String]) {
        container.remove_running();
        assert_eq!(self.snapshot(), before);
    }
}

/// A link that is busy both ways all the time, by pings of 192.0.2.1.
#[derive(Debug)]
pub struct Load<'a>(&'a Container<'a>);

impl<'a> Load<'a> {
    /// Begins.
    pub fn on(container: &'a Container<'a>) -> Self {
        let ping =
            "ping -q -i 0.005 -s 1000 192.0.2.1 > /dev/shm/load 2>&1 & echo $! > /dev/shm/pid";
        assert_eq!(container.exec(&["sh", "-c", ping], b"").code, 0);
        Self(container)
    }

    /// Ends; the link has served all the time.
    pub fn was_served(self) {
        let ended = self.0.exec(&["sh", "-c", "kill -INT $(cat /dev/shm/pid)"], b"");
        assert_eq!(ended.code, 0, "{}", ended.stderr());
        let said = self.0.until("grep transmitted /dev/shm/load").stdout();
        let counts: Vec<u32> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(counts[1] > 10 && counts[1] > counts[0] / 2, "{said}");
    }
}
