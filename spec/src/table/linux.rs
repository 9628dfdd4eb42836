//! `linux` but for `resources`.

use super::{
    Field, I64, Kind, TEXT_MAP, TEXTS, U32, U64, applied, host_only, names, refused, required,
    resources::RESOURCES, translated,
};

const SAME_NUMBER: &str = "the guest's device of this number; a block device of the host is a disk of the guest, with a number there; another one that only the host has is refused";
const UNHEARD: &str = "nobody listens without SCMP_ACT_NOTIFY, which is refused";
const LSM: &str = "the guest kernel has no such module; the VM is the boundary";

pub(super) const LINUX: &[Field] = &[
    applied("uidMappings", Kind::List(&Kind::Object(ID_MAPPING))),
    applied("gidMappings", Kind::List(&Kind::Object(ID_MAPPING))),
    applied("sysctl", TEXT_MAP),
    applied("resources", Kind::Object(RESOURCES)),
    host_only(
        "cgroupsPath",
        Kind::Text,
        "holds the process that stands for the container; the guest has a group of its own",
    ),
    applied("namespaces", Kind::List(&Kind::Object(NAMESPACE))),
    applied("devices", Kind::List(&Kind::Object(DEVICE))),
    applied("seccomp", Kind::Object(SECCOMP)),
    applied("rootfsPropagation", Kind::Word(names::PROPAGATIONS)),
    applied("maskedPaths", TEXTS),
    applied("readonlyPaths", TEXTS),
    host_only("mountLabel", Kind::Text, LSM),
    refused("intelRdt", Kind::Any, "cache and bandwidth of the host can't be given to a VM yet"),
    refused("memoryPolicy", Kind::Any, "NUMA nodes of the host are not those of the guest"),
    refused(
        "netDevices",
        Kind::Any,
        "a network device of the host can't move into a VM: put it into the network namespace instead",
    ),
    applied("personality", Kind::Object(PERSONALITY)),
    applied("timeOffsets", Kind::Map(&Kind::Object(TIME_OFFSET))),
];

pub(super) const ID_MAPPING: &[Field] = &[
    required(applied("containerID", U32)),
    required(applied("hostID", U32)),
    required(applied("size", U32)),
];

const NAMESPACE: &[Field] = &[
    required(applied("type", Kind::Word(names::NAMESPACES))),
    host_only("path", Kind::Text, "of a network namespace: joined on the host; any other: refused"),
];

const DEVICE: &[Field] = &[
    required(applied("path", Kind::Text)),
    required(applied("type", Kind::Word(names::DEVICES))),
    translated("major", I64, SAME_NUMBER),
    translated("minor", I64, SAME_NUMBER),
    applied("fileMode", U32),
    applied("uid", U32),
    applied("gid", U32),
];

const SECCOMP: &[Field] = &[
    required(applied("defaultAction", Kind::Word(names::SECCOMP_ACTIONS))),
    applied("defaultErrnoRet", U32),
    applied("architectures", Kind::List(&Kind::Word(names::ARCHITECTURES))),
    applied("flags", Kind::List(&Kind::Word(names::SECCOMP_FLAGS))),
    host_only("listenerPath", Kind::Text, UNHEARD),
    host_only("listenerMetadata", Kind::Text, UNHEARD),
    applied("syscalls", Kind::List(&Kind::Object(SYSCALL))),
];

const SYSCALL: &[Field] = &[
    required(applied("names", TEXTS)),
    required(applied("action", Kind::Word(names::SECCOMP_ACTIONS))),
    applied("errnoRet", U32),
    applied("args", Kind::List(&Kind::Object(SYSCALL_ARGUMENT))),
];

const SYSCALL_ARGUMENT: &[Field] = &[
    required(applied("index", Kind::Number(0, 5))),
    required(applied("value", U64)),
    applied("valueTwo", U64),
    required(applied("op", Kind::Word(names::SECCOMP_OPERATORS))),
];

const PERSONALITY: &[Field] = &[
    required(applied("domain", Kind::Word(names::DOMAINS))),
    refused("flags", TEXTS, "the specification defines none"),
];

const TIME_OFFSET: &[Field] =
    &[applied("secs", I64), applied("nanosecs", Kind::Number(0, 999_999_999))];
