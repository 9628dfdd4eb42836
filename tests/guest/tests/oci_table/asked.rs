//! What the two containers ask for.

use std::{fs, os::unix::fs::PermissionsExt};

use kata_guest_tests::{HostGroup, Kata, Root, Wire};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rows::RECENT;

const PROFILE: &str = include_str!("../oci_seccomp/docker.json");

/// What a container needs on the host to ask for it.
pub struct Surroundings {
    /// Whether what runc before [`RECENT`] refuses is asked for: time namespaces, id maps of mounts, flags of filters.
    recent: bool,
    /// Whether what limits show can be compared: the guest's control groups are of version 2.
    limits: bool,
    wire: Wire,
    directory: TempDir,
}

impl Surroundings {
    pub fn new(runtime: &Kata, wire: Wire) -> Self {
        let oracle = runtime.is_oracle();
        let recent = !oracle || runtime.version() >= RECENT;
        let directory = tempfile::tempdir().unwrap();
        for name in ["volume", "mapped"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("volume/file"), "from the host").unwrap();
        Self { recent, limits: !oracle || HostGroup::are_v2(), wire, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn cgroups_path(&self) -> String {
        let name = self.directory.path().file_name().unwrap().to_str().unwrap();
        format!("/kata-oci-{}", name.trim_start_matches('.'))
    }

    /// Puts into a root what is to be looked at.
    pub fn furnish(&self, root: &Root) {
        for directory in ["work", "hidden", "copied", "tmp", "fixed", "volume", "mapped"] {
            fs::create_dir_all(root.file(&format!("/asked/{directory}"))).unwrap();
        }
        // runc 1.1 gives a tmpfs the mode of its mount point, whatever its options say.
        fs::set_permissions(root.file("/asked/tmp"), PermissionsExt::from_mode(0o757)).unwrap();
        fs::set_permissions(root.file("/asked/copied"), PermissionsExt::from_mode(0o711)).unwrap();
        fs::write(root.file("/asked/secret"), "secret").unwrap();
        fs::write(root.file("/asked/hidden/file"), "secret").unwrap();
        fs::write(root.file("/asked/copied/file"), "of the image").unwrap();
        fs::write(root.file("/asked/probe.py"), include_str!("probe.py")).unwrap();
    }

    /// Kinds of the hooks that have run, in their order, with what their environment said.
    pub fn hooks_that_ran(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("hooks")).unwrap();
        log.lines().collect::<Vec<_>>().join(" ")
    }

    fn hook(&self, kind: &str) -> Value {
        let script = format!("echo $KIND-$1 >>{}", self.path("hooks"));
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script, "sh", "argument"],
            "env": [format!("KIND={kind}")], "timeout": 20}])
    }
}

/// As an unprivileged user, on a network that was made before.
pub fn first(config: &mut Value, around: &Surroundings) {
    process(config);
    config["ociVersion"] = json!("1.0.2-dev");
    config["hostname"] = json!("asked-host");
    config["domainname"] = json!("asked.domain");
    config["annotations"] = json!({"asked": "annotation"});
    config["root"]["readonly"] = json!(true);
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        config["hooks"][kind] = around.hook(kind);
    }
    config["hooks"]["startContainer"] = json!([{"path": "/bin/sh", "env": ["KIND=startContainer"],
        "args": ["sh", "-c", "echo $KIND-$1 >/asked/tmp/hook", "sh", "argument"], "timeout": 20}]);
    mounts(config, around);
    let linux = &mut config["linux"];
    for namespace in linux["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = json!(around.wire.path());
        }
    }
    linux["cgroupsPath"] = json!(around.cgroups_path());
    linux["maskedPaths"] = json!(["/asked/secret", "/asked/hidden"]);
    linux["readonlyPaths"] = json!(["/asked/fixed"]);
    linux["rootfsPropagation"] = json!("shared");
    linux["sysctl"] = json!({"net.ipv4.ip_default_ttl": "77", "kernel.msgmax": "4096"});
    linux["personality"] = json!({"domain": "LINUX32"});
    linux["devices"] = json!([{"path": "/dev/asked", "type": "c", "major": 10, "minor": 229,
        "fileMode": 0o640, "uid": 1000, "gid": 6}]);
    linux["resources"]["devices"] = json!([{"allow": false, "type": "a", "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]);
    linux["seccomp"] = seccomp();
    if around.recent {
        linux["seccomp"]["flags"] =
            json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    }
    if around.limits {
        resources(&mut linux["resources"]);
    }
}

fn process(config: &mut Value) {
    let process = &mut config["process"];
    process["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [7, 1002]});
    process["cwd"] = json!("/asked/work");
    process["env"].as_array_mut().unwrap().push(json!("ASKED=for this"));
    process["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_KILL", "CAP_NET_RAW"],
        "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
        "ambient": ["CAP_NET_RAW"],
    });
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    process["noNewPrivileges"] = json!(true);
    process["oomScoreAdj"] = json!(321);
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 5});
}

fn mounts(config: &mut Value, around: &Surroundings) {
    let options = ["nosuid", "noexec", "noatime", "mode=757", "size=1m", "rshared"];
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.extend([
        json!({"destination": "/asked/tmp", "type": "tmpfs", "source": "asked-source", "options": options}),
        json!({"destination": "/asked/copied", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        json!({"destination": "/asked/volume", "type": "bind", "source": around.path("volume"), "options": ["rbind", "ro"]}),
    ]);
    if around.recent {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        mounts.push(
            json!({"destination": "/asked/mapped", "type": "bind", "source": around.path("mapped"),
            "options": ["rbind", "ridmap", "rro"], "uidMappings": map, "gidMappings": map}),
        );
    }
}

fn seccomp() -> Value {
    let rule = |name: &str, errno: u32, args: Value| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args});
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            rule("mkdir", 95, json!([])),
            rule("getpriority", 96, json!([{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}])),
            rule("getpriority", 97,
                json!([{"index": 0, "value": 7, "valueTwo": 6, "op": "SCMP_CMP_MASKED_EQ"}])),
            rule("socket", 98, json!([{"index": 0, "value": 0x10000, "op": "SCMP_CMP_GE"}])),
        ],
    })
}

fn resources(resources: &mut Value) {
    resources["memory"] =
        json!({"limit": 268_435_456, "reservation": 134_217_728, "swap": 301_989_888});
    resources["pids"] = json!({"limit": 123});
    resources["cpu"] = json!({"shares": 512, "quota": 150_000, "period": 100_000, "burst": 20_000});
    resources["blockIO"] = json!({"weight": 505});
    resources["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4_194_304}]);
    resources["unified"] = json!({"memory.high": "201326592"});
}

/// Processes that are added to the first container.
pub fn added(config: &Value) -> [(&'static str, Value); 3] {
    let mut process = config["process"].clone();
    process["args"] = json!(["python3", "/asked/probe.py"]);
    let mut pinned = process.clone();
    pinned["execCPUAffinity"] = json!({"initial": "1"});
    let mut real_time = process.clone();
    real_time["scheduler"] =
        json!({"policy": "SCHED_FIFO", "priority": 10, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    real_time["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 2});
    real_time["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    process["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 30_000_000, "deadline": 50_000_000, "period": 100_000_000});
    [("pinned", pinned), ("real time", real_time), ("deadline", process)]
}

/// Root of a user namespace at a terminal, under docker's filter.
pub fn second(config: &mut Value, around: &Surroundings) {
    config["process"]["terminal"] = json!(true);
    config["process"]["consoleSize"] = json!({"height": 21, "width": 73});
    let linux = &mut config["linux"];
    let map = json!([{"containerID": 0, "hostID": 0, "size": 1000},
        {"containerID": 1000, "hostID": 5000, "size": 10}]);
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    if around.recent {
        namespaces.push(json!({"type": "time"}));
        linux["timeOffsets"] = json!({"boottime": {"secs": 2_000_000},
            "monotonic": {"secs": 2_000_000, "nanosecs": 999_999_999}});
    }
    if around.limits {
        linux["resources"]["cpu"] = json!({"idle": 1, "period": 50_000});
    }
    // In a user namespace runc shows the host's node, which has to be there.
    linux["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    linux["resources"]["devices"] = json!([{"allow": true, "type": "a", "access": "rwm"}]);
    linux["seccomp"] = serde_json::from_str(PROFILE).unwrap();
    linux["seccomp"]["defaultErrnoRet"] = json!(99);
}

/// What is refused, wrong, or only about the host; all at once, because nothing comes of it.
pub fn explained(config: &mut Value) {
    let device = json!([{"major": 8, "minor": 0, "rate": 1_000_000}]);
    let weight = json!([{"major": 8, "minor": 0, "weight": 100, "leafWeight": 100}]);
    config["process"]["apparmorProfile"] = json!("asked");
    config["process"]["selinuxLabel"] = json!("system_u:system_r:asked_t:s0");
    config["process"]["commandLine"] = json!("asked.exe");
    config["process"]["user"]["username"] = json!("asked");
    config["linux"]["mountLabel"] = json!("system_u:object_r:asked_t:s0");
    config["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/ipc");
    config["linux"]["intelRdt"] = json!({"closID": "asked", "l3CacheSchema": "L3:0=f",
        "memBwSchema": "MB:0=20", "enableCMT": true, "enableMBM": true, "enableMonitoring": true,
        "schemata": ["L3:0=f"]});
    config["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    config["linux"]["netDevices"] = json!({"eth0": {"name": "asked0"}});
    config["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["asked"]});
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY",
        "listenerPath": "/run/asked.sock", "listenerMetadata": "asked"});
    config["linux"]["resources"] = json!({
        "rdma": {"mlx5_0": {"hcaHandles": 1, "hcaObjects": 2}},
        "network": {"classID": 5, "priorities": [{"name": "eth0", "priority": 3}]},
        "cpu": {"cpus": "0", "mems": "0", "realtimeRuntime": 1000, "realtimePeriod": 100_000},
        "memory": {"kernel": 1_048_576, "kernelTCP": 1_048_576, "swappiness": 10,
            "disableOOMKiller": true, "useHierarchy": true, "checkBeforeUpdate": true},
        "blockIO": {"leafWeight": 100, "weightDevice": weight,
            "throttleReadBpsDevice": device, "throttleWriteBpsDevice": device,
            "throttleReadIOPSDevice": device, "throttleWriteIOPSDevice": device},
    });
}
