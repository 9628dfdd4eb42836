//! What a pod is made of when no engine makes a container that stands for it: CRI's configuration, as the configuration
//! that the engine would have written for that container, and the files that it would have bound into the others.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use kata_engine_api::containerd::pod::{NamespaceMode, PodSandboxConfig};
use serde_json::{Map, Value, json};

/// What CRI gives the pods of others; in bytes.
const SHARED_MEMORY: u64 = 64 * 1024 * 1024;

/// What containerd gives pods with a network of their own when it writes their configuration itself, by its defaults: low
/// ports and ping without privileges.
const UNPRIVILEGED: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Files of a pod, by their place in its containers.
const FILES: [(&str, &str); 3] =
    [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")];

/// The configuration of a container that stands for the pod `id`, in the namespace at `netns`. Its root is empty, and not
/// in the bundle, where an engine wants to find it so.
pub fn specification(id: &str, (netns, root): (&str, &Path), config: &PodSandboxConfig) -> Value {
    let options = &config.linux.security_context.namespace_options;
    let of_host = |mode: NamespaceMode| mode == NamespaceMode::NODE;
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "uts"})];
    if !netns.is_empty() {
        namespaces.push(json!({"type": "network", "path": netns}));
    }
    for (kind, mode) in [("pid", options.pid), ("ipc", options.ipc)] {
        if !of_host(mode.enum_value_or_default()) {
            namespaces.push(json!({"type": kind}));
        }
    }
    let memory = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned);
    let memory = [&memory[..], &[format!("size={SHARED_MEMORY}")]].concat();
    // What the configuration itself says goes first.
    let mut sysctls: HashMap<&str, &str> =
        if netns.is_empty() { HashMap::new() } else { UNPRIVILEGED.into() };
    sysctls
        .extend(config.linux.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut linux = json!({"namespaces": namespaces, "sysctl": sysctls});
    if let Some(group) = group(&config.linux.cgroup_parent, id) {
        linux["cgroupsPath"] = json!(group);
    }
    json!({
        "ociVersion": "1.1.0",
        "hostname": config.hostname,
        "root": {"path": root, "readonly": true},
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": memory},
        ],
        "annotations": annotations(id, config),
        "linux": linux,
    })
}

/// A group of the pod's below the one that is named; a slice of systemd's is named in its own way.
fn group(parent: &str, id: &str) -> Option<String> {
    let name = Path::new(parent).file_name()?.to_str()?;
    Some(match name.ends_with(".slice") {
        true => format!("{name}:cri-containerd:{id}"),
        false => Path::new(parent).join(id).display().to_string(),
    })
}

/// The pod's own, and what engines say of pods: who it is, and what its containers are going to ask for.
fn annotations(id: &str, config: &PodSandboxConfig) -> Map<String, Value> {
    let mut all: Map<String, Value> =
        config.annotations.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut say = |name: &str, value: String| {
        all.insert(format!("io.kubernetes.cri.{name}"), json!(value));
    };
    say("container-type", "sandbox".into());
    say("sandbox-id", id.into());
    let resources = &config.linux.resources;
    for (name, number) in [
        ("sandbox-cpu-period", resources.cpu_period),
        ("sandbox-cpu-quota", resources.cpu_quota),
        ("sandbox-cpu-shares", resources.cpu_shares),
        ("sandbox-memory", resources.memory_limit_in_bytes),
    ] {
        if number != 0 {
            say(name, number.to_string());
        }
    }
    all
}

/// Writes the pod's files into a directory; what the configuration does not say is the host's.
pub fn write_files(directory: &Path, config: &PodSandboxConfig) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let dns = &config.dns_config;
    let mut resolver = String::new();
    for (word, values) in [("search", &dns.searches), ("options", &dns.options)] {
        if !values.is_empty() {
            resolver.push_str(&format!("{word} {}\n", values.join(" ")));
        }
    }
    resolver.extend(dns.servers.iter().map(|server| format!("nameserver {server}\n")));
    let hostname = match config.hostname.as_str() {
        "" => String::new(),
        name => format!("{name}\n"),
    };
    for ((place, name), text) in FILES.into_iter().zip([hostname, String::new(), resolver]) {
        let text = match text.is_empty() {
            // A host may have none.
            true => fs::read(place).unwrap_or_default(),
            false => text.into_bytes(),
        };
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// Binds the pod's files into the configuration of one of its containers, where nothing else is; to be read only, if its
/// root is.
pub fn bind_files(config: &mut Value, directory: &Path) {
    let access = if config["root"]["readonly"] == true { "ro" } else { "rw" };
    let Some(mounts) = config["mounts"].as_array_mut() else { return };
    for (place, name) in FILES {
        if mounts.iter().any(|mount| mount["destination"] == place) {
            continue;
        }
        let source: PathBuf = directory.join(name);
        let options = ["rbind", "rprivate", access];
        mounts.push(
            json!({"destination": place, "type": "bind", "source": source, "options": options}),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kata_engine_api::containerd::pod::{
        DNSConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
        NamespaceOption, PodSandboxConfig,
    };
    use serde_json::{Value, json};

    use super::{bind_files, specification, write_files};
    use crate::{container::Role, engine::pod};

    fn config(parent: &str, pid: NamespaceMode) -> PodSandboxConfig {
        let options = NamespaceOption { pid: pid.into(), ..Default::default() };
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(options).into(),
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: parent.into(),
            security_context: Some(context).into(),
            sysctls: [("net.x", "1"), ("net.ipv4.ip_unprivileged_port_start", "1024")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let dns = DNSConfig {
            servers: vec!["10.0.0.1".into()],
            searches: vec!["a".into(), "b".into()],
            ..Default::default()
        };
        PodSandboxConfig {
            hostname: "web-0".into(),
            dns_config: Some(dns).into(),
            linux: Some(linux).into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_what_an_engine_would_have_said_of_it() {
        let spec = specification(
            "p",
            ("/run/netns/x", Path::new("/r")),
            &config("/kubepods/pod1", NamespaceMode::POD),
        );
        assert_eq!(pod::role(&spec), Role::Pod);
        let common = pod::common(spec.to_string().as_bytes());
        assert_eq!((common.shm_bytes, common.sysctls["net.x"].as_str()), (64 << 20, "1"));
        assert_eq!(common.sysctls["net.ipv4.ip_unprivileged_port_start"], "1024", "its own");
        assert_eq!(common.sysctls["net.ipv4.ping_group_range"], "0 2147483647");
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/p");
        let kinds = |spec: &Value| {
            let all = spec["linux"]["namespaces"].as_array().unwrap();
            all.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&spec), ["mount", "uts", "network", "pid", "ipc"]);
        let host = specification(
            "p",
            ("", Path::new("/r")),
            &config("a/kubepods-x.slice", NamespaceMode::NODE),
        );
        assert_eq!(kinds(&host), ["mount", "uts", "ipc"]);
        assert_eq!(host["linux"]["cgroupsPath"], "kubepods-x.slice:cri-containerd:p");
    }

    #[test]
    fn files_are_the_pods_where_nothing_else_is() {
        let scratch = tempfile::tempdir().unwrap();
        write_files(scratch.path(), &config("", NamespaceMode::POD)).unwrap();
        let resolver = std::fs::read_to_string(scratch.path().join("resolv.conf")).unwrap();
        assert_eq!(resolver, "search a b\nnameserver 10.0.0.1\n");
        let mut spec = json!({"mounts": [{"destination": "/etc/hosts", "source": "/theirs"}]});
        bind_files(&mut spec, scratch.path());
        let sources: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["source"].clone()).collect();
        assert_eq!(sources[0], "/theirs");
        assert_eq!(sources.len(), 3);
        assert_eq!(spec["mounts"][1]["options"], json!(["rbind", "rprivate", "rw"]));
        let mut spec = json!({"root": {"readonly": true}, "mounts": []});
        bind_files(&mut spec, scratch.path());
        assert_eq!(spec["mounts"][0]["options"], json!(["rbind", "rprivate", "ro"]));
    }
}
