//! podman, as Debian has it.

use std::{fs, path::Path, process::Command};

use crate::{Engine, Kind, Netns, engine::installed, scratch::scratch};

/// The default limits are beyond what a machine without CAP_SYS_RESOURCE may set, for runc.
const LIMITS: &str = r#"default_ulimits=["nofile=20000:20000","nproc=16384:16384"]"#;

impl Engine {
    /// buildah, with the store of this podman and Kata as its runtime.
    pub fn buildah(&self, words: &[&str]) -> Command {
        let mut command = self.beside("buildah");
        for (name, value) in self.command(&[]).get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command.env("BUILDAH_RUNTIME", &self.kata).args(words);
        command
    }
}

/// What makes podman's networks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    /// Plugins; Debian has none of them that knows names.
    Cni,
    /// podman's own, with a server for names.
    Netavark,
}

/// podman with a store of its own, the runtimes `kata` and `runc`, the image `busybox`, and networks by CNI; `None`, after a
/// word on why, where it can't be had.
pub fn podman() -> Option<Engine> {
    with(Backend::Cni, &["podman", "conmon", "runc"])
}

/// The same with networks by netavark.
pub fn podman_with_netavark() -> Option<Engine> {
    let helpers = ["../lib/podman/netavark", "../lib/podman/aardvark-dns"];
    with(Backend::Netavark, &[&["podman", "conmon", "runc"], &helpers[..]].concat())
}

fn with(backend: Backend, programs: &[&str]) -> Option<Engine> {
    let kata = installed(programs)?;
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    for directory in ["home", "net"] {
        fs::create_dir(at(directory)).unwrap();
    }
    let name = match backend {
        Backend::Cni => "cni",
        Backend::Netavark => "netavark",
    };
    let configuration = format!(
        "[containers]\n{LIMITS}\n\
         [network]\nnetwork_backend = \"{name}\"\ncni_plugin_dirs = [\"/usr/lib/cni\"]\n\
         network_config_dir = \"{}\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
         tmp_dir = \"{}\"\nvolume_path = \"{}\"\nruntime = \"runc\"\n\
         [engine.runtimes]\nrunc = [\"/usr/sbin/runc\"]\nkata = [\"{}\"]\n",
        at("net"),
        at("tmp"),
        at("volumes"),
        kata.display()
    );
    fs::write(at("containers.conf"), configuration).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        at("root"),
        at("run")
    );
    fs::write(at("storage.conf"), storage).unwrap();
    if backend == Backend::Cni {
        write_network(scratch.path());
    }
    let engine = Engine {
        kind: Kind::Podman,
        scratch,
        netns: Netns::new(),
        kata,
        daemon: None,
        programs: None,
        names: backend == Backend::Netavark,
    };
    engine.import()?;
    Some(engine)
}

/// The network that containers have by default.
fn write_network(scratch: &Path) {
    let network = r#"{"cniVersion": "0.4.0", "name": "podman", "plugins": [
        {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/16", "gateway": "10.91.0.1"}]],
                  "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}]}"#;
    let addresses = scratch.join("ipam").display().to_string();
    let file = scratch.join("net/87-podman.conflist");
    fs::write(file, network.replace("DATA", &addresses)).unwrap();
}
