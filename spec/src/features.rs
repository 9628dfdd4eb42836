//! `kata-runtime features`, from the same words that the table checks.

use serde_json::{Value, json};

use crate::{
    mounts::GUEST_TYPES,
    table::{
        ARCHITECTURES, CAPABILITIES, Explained, NAMESPACES, SECCOMP_ACTIONS, SECCOMP_FLAGS,
        SECCOMP_OPERATORS, rows,
    },
};

/// File systems that the smaller of the guest's kernels does not have.
const NOT_IN_EVERY_GUEST: [&str; 2] = ["debugfs", "tracefs"];

/// Options of mounts that are flags; others are the file system's own.
const MOUNT_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// True for a word that may stand among the options of a bind mount. What is bound has its file system's own already, and a
/// misspelt flag protects nobody.
pub(crate) fn is_for_binding(word: &str) -> bool {
    // Podman leaves in the list what it has seen to itself.
    let seen_to = matches!(word, "" | "copy" | "nocopy") || word.starts_with("volume-opt=");
    seen_to || MOUNT_OPTIONS.contains(&word)
}

/// The newest version whose fields the table knows. Not [`crate::VERSION`]: this is about what is read.
const NEWEST: &str = "1.3.0";

/// The document that OCI's `features` prints: what the table applies, and nothing that it refuses.
pub fn features() -> Value {
    let rows = rows();
    let refused =
        |field: &str| rows.iter().any(|row| row.field == field && row.treatment == "refused");
    let applied = |row: &Explained| row.treatment != "refused";
    let hooks: Vec<&str> = rows
        .iter()
        .filter(|row| applied(row))
        .filter_map(|row| row.field.strip_prefix("hooks."))
        .collect();
    let user_namespace = !refused("linux.uidMappings");
    let namespaces = NAMESPACES.iter().filter(|kind| **kind != "user" || user_namespace);
    // Without a listener nothing waits for one.
    let flags =
        SECCOMP_FLAGS.iter().filter(|flag| **flag != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV");
    let types: Vec<&str> =
        GUEST_TYPES.iter().copied().filter(|kind| !NOT_IN_EVERY_GUEST.contains(kind)).collect();
    let actions = SECCOMP_ACTIONS.iter().filter(|action| **action != "SCMP_ACT_NOTIFY");
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": NEWEST,
        "hooks": hooks,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": namespaces.collect::<Vec<_>>(),
            "capabilities": CAPABILITIES,
            "cgroup": {
                "v1": false, "v2": true, "systemd": false, "systemdUser": false,
                "rdma": !refused("linux.resources.rdma"),
            },
            "seccomp": {
                "enabled": true,
                "actions": actions.collect::<Vec<_>>(),
                "operators": SECCOMP_OPERATORS,
                "archs": ARCHITECTURES,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": flags.collect::<Vec<_>>(),
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": !refused("linux.intelRdt")},
            "memoryPolicy": {"enabled": !refused("linux.memoryPolicy")},
            "netDevices": {"enabled": !refused("linux.netDevices")},
            "mountExtensions": {"idmap": {"enabled": !refused("mounts[].uidMappings")}},
        },
        "annotations": {"io.katacontainers.mounts.types": types.join(",")},
        "potentiallyUnsafeConfigAnnotations": ["io.katacontainers."],
    })
}
