//! OCI bundles.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{Kata, Root};

/// A bundle around a root file system.
#[derive(Debug)]
pub struct Bundle {
    directory: tempfile::TempDir,
    /// What `config.json` says; [`Bundle::write`] after changing it.
    pub config: Value,
    root: Root,
}

/// What docker leaves a container; `spec` gives as little as runc's.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

impl Bundle {
    /// A bundle that `kata-runtime spec` has begun, without a terminal, that runs `args`.
    pub fn new(kata: &Kata, root: Root, args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        let made = kata.call(&["spec", "--bundle", &path]);
        assert_eq!(made.code, 0, "{}", made.stderr());
        let text = fs::read(directory.path().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        config["root"] = json!({"path": root.path(), "readonly": false});
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(CAPABILITIES);
        }
        let bundle = Self { directory, config, root };
        bundle.write();
        bundle
    }

    /// Writes `config.json`.
    pub fn write(&self) {
        fs::write(self.directory.path().join("config.json"), self.config.to_string()).unwrap();
    }

    /// Its path, as an argument.
    pub fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.path()).join(name)
    }

    /// Its root.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

/// Gives a container a user namespace with a map that the guest's root is not in.
pub fn map_ids(config: &mut Value) {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let linux = &mut config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
}
