//! A network namespace for an engine and all that it makes.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use kata_guest_tests::ip;

use crate::scratch::PREFIX;

/// Where ip(8) keeps them.
pub(crate) const PLACE: &str = "/run/netns";

/// A namespace with loopback and forwarding. Dropping it takes it away.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self { name: format!("{PREFIX}{}-{number}", std::process::id()) };
        ip(&["netns", "add", &netns.name]);
        ip(&["-n", &netns.name, "link", "set", "lo", "up"]);
        let mut forward = netns.command("sysctl");
        forward.args(["-qw", "net.ipv4.ip_forward=1"]);
        assert!(forward.status().unwrap().success());
        netns
    }

    /// A program that runs in it. `ip netns exec` would hide the control groups.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={PLACE}/{}", self.name)).args(["--", program]);
        command
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}
