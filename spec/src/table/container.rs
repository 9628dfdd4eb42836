//! `config.json` but for `process` and `linux`.

use super::{
    Field, Kind, TEXT_MAP, TEXTS, applied, host_only,
    linux::{ID_MAPPING, LINUX},
    process::PROCESS,
    refused, required, translated,
};

const NOT_LINUX: &str = "only for another platform";
const ON_HOST: &str = "run on the host";
const ID_MAPPED: &str = "the host's copy of the mount is id-mapped";

/// The whole document.
pub const CONFIG: &[Field] = &[
    required(host_only("ociVersion", Kind::Text, "any 1.x")),
    required(applied("process", Kind::Object(PROCESS))),
    required(applied("root", Kind::Object(ROOT))),
    applied("mounts", Kind::List(&Kind::Object(MOUNT))),
    applied("hostname", Kind::Text),
    applied("domainname", Kind::Text),
    applied("hooks", Kind::Object(HOOKS)),
    host_only("annotations", TEXT_MAP, "shown by state; the guest is not told"),
    applied("linux", Kind::Object(LINUX)),
    refused("solaris", Kind::Any, NOT_LINUX),
    refused("windows", Kind::Any, NOT_LINUX),
    refused("zos", Kind::Any, NOT_LINUX),
    refused("freebsd", Kind::Any, NOT_LINUX),
    refused(
        "vm",
        Kind::Any,
        "hypervisor, kernel and image are chosen by the configuration of Kata",
    ),
];

const ROOT: &[Field] = &[
    required(host_only("path", Kind::Text, "shared with the guest, which is told its own path")),
    applied("readonly", Kind::Bool),
];

const MOUNT: &[Field] = &[
    required(applied("destination", Kind::Text)),
    applied("type", Kind::Text),
    translated("source", Kind::Text, "of a bind mount: shared with the guest as a volume"),
    applied("options", TEXTS),
    host_only("uidMappings", Kind::List(&Kind::Object(ID_MAPPING)), ID_MAPPED),
    host_only("gidMappings", Kind::List(&Kind::Object(ID_MAPPING)), ID_MAPPED),
];

const HOOKS: &[Field] = &[
    host_only("prestart", HOOK_LIST, ON_HOST),
    host_only("createRuntime", HOOK_LIST, ON_HOST),
    host_only(
        "createContainer",
        HOOK_LIST,
        "run on the host, in the container's network namespace and a copy of the mounts",
    ),
    translated(
        "startContainer",
        HOOK_LIST,
        "run in the guest, in the container, under its filters of system calls",
    ),
    host_only("poststart", HOOK_LIST, ON_HOST),
    host_only("poststop", HOOK_LIST, ON_HOST),
];

const HOOK_LIST: Kind = Kind::List(&Kind::Object(HOOK));

const HOOK: &[Field] = &[
    required(applied("path", Kind::Text)),
    applied("args", TEXTS),
    applied("env", TEXTS),
    applied("timeout", Kind::Number(1, i32::MAX as u64)),
];
