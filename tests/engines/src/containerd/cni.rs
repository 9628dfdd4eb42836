//! Configuration of CNI.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// What most hosts have: a bridge with a gateway, and ports of the host.
pub fn bridge() -> Vec<Value> {
    vec![
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
            "ipam": host_local("10.88.0.0/16"),
        }),
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
    ]
}

/// Addresses of a subnet, and a route to everywhere.
pub fn host_local(subnet: &str) -> Value {
    let ranges = json!([[{"subnet": subnet}]]);
    json!({"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]})
}

/// Writes them down for an engine that keeps its files in `directory`, addresses that are taken among them.
pub(super) fn write(directory: &Path, name: &str, plugins: &[Value]) {
    let taken = directory.join("ipam").display().to_string();
    let mut plugins = plugins.to_vec();
    for plugin in plugins.iter_mut().filter(|plugin| plugin["ipam"].is_object()) {
        plugin["ipam"]["dataDir"] = taken.clone().into();
    }
    let list = json!({"cniVersion": "0.4.0", "name": name, "plugins": plugins});
    fs::create_dir(directory.join("cni")).unwrap();
    fs::write(directory.join("cni/10.conflist"), list.to_string()).unwrap();
}
