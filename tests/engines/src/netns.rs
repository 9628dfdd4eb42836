//! A network namespace for an engine and all that it makes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};

use kata_guest_tests::{HostNetwork, beside, ip, snapshot};

use crate::scratch::PREFIX;

/// Where ip(8) keeps them.
pub(crate) const PLACE: &str = "/run/netns";

/// A namespace with loopback and forwarding. Dropping it takes it away.
#[derive(Debug)]
pub struct Netns {
    name: String,
    _host: HostNetwork,
}

impl Netns {
    /// Makes one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let netns = Self { name, _host: HostNetwork::watch() };
        ip(&["netns", "add", &netns.name]);
        ip(&["-n", &netns.name, "link", "set", "lo", "up"]);
        let mut forward = netns.command("sysctl");
        forward.args(["-qw", "net.ipv4.ip_forward=1"]);
        assert!(forward.status().unwrap().success());
        netns
    }

    /// `ip` in it, which has to succeed.
    pub fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// All of it that does not change by itself.
    pub fn snapshot(&self) -> Vec<String> {
        snapshot(Some(&self.name))
    }

    /// Runs something in it, on a thread of its own.
    pub fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        beside(&self.name, work)
    }

    /// Whether a process, by its directory in `/proc`, lives in it.
    pub fn has(&self, process: &Path) -> bool {
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let own = identity(&Path::new(PLACE).join(&self.name));
        own.is_some() && identity(&process.join("ns/net")) == own
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
