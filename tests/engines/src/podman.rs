//! podman, as Debian has it.

use std::{fs, process::Command};

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

/// podman with a store of its own, the runtimes `kata` and `runc`, and the image `busybox`; `None`, after a word on why,
/// where it can't be had.
pub fn podman() -> Option<Engine> {
    let kata = installed(&["podman", "conmon", "runc"])?;
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    for directory in ["home", "net"] {
        fs::create_dir(at(directory)).unwrap();
    }
    let configuration = format!(
        "[containers]\n{LIMITS}\n\
         [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/usr/lib/cni\"]\n\
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
    let network = r#"{"cniVersion": "0.4.0", "name": "podman", "plugins": [
        {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/16", "gateway": "10.91.0.1"}]],
                  "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}]}"#;
    fs::write(at("net/87-podman.conflist"), network.replace("DATA", &at("ipam"))).unwrap();
    let engine = Engine {
        kind: Kind::Podman,
        scratch,
        netns: Netns::new(),
        kata,
        daemon: None,
        programs: None,
    };
    engine.import()?;
    Some(engine)
}
