//! `linux.resources`. Limits hold in the guest; they are also set on the host's groups, where engines read them.

use super::{
    Field, I64, Kind, TEXT_MAP, U16, U32, U64, applied, host_only, names, refused, required,
    translated,
};

const HOST_DEVICE: &str = "a device of the host is not the guest's";
const NOT_V2: &str =
    "control groups v2, which the guest has, know no such setting; runc ignores it there";
const PROXYS_WEIGHT: &str = "holds on the host, for what the proxy reads and writes there for the guest, \
     unless the sandbox has several containers";
const PROXYS_RATE: &str = "holds on the host, for what the proxy reads and writes there for the guest; \
     of several containers the sum, or none when one of them has none";
const NUMBERS: &str = "the VM is held to these on the host; the guest's own are numbered from 0";
const UNIFIED: &str = "written in the guest, but for limits of memory, processors, tasks and single devices, \
     which are taken as the fields that say the same";
const NET_V1: &str = "control groups v2, which the guest has, know no network classes";

/// Rows of `linux.resources`.
pub const RESOURCES: &[Field] = &[
    applied("devices", Kind::List(&Kind::Object(DEVICE_RULE))),
    applied("memory", Kind::Object(MEMORY)),
    applied("cpu", Kind::Object(CPU)),
    applied("pids", Kind::Object(PIDS)),
    applied("blockIO", Kind::Object(BLOCK_IO)),
    applied("hugepageLimits", Kind::List(&Kind::Object(HUGEPAGE_LIMIT))),
    applied("network", Kind::Object(NETWORK)),
    refused("rdma", Kind::Any, HOST_DEVICE),
    translated("unified", TEXT_MAP, UNIFIED),
];

const DEVICE_RULE: &[Field] = &[
    applied("allow", Kind::Bool),
    applied("type", Kind::Word(names::DEVICE_RULES)),
    applied("major", I64),
    applied("minor", I64),
    applied("access", Kind::Text),
];

const MEMORY: &[Field] = &[
    applied("limit", I64),
    applied("reservation", I64),
    applied("swap", I64),
    translated("kernel", I64, NOT_V2),
    translated("kernelTCP", I64, NOT_V2),
    translated("swappiness", U64, NOT_V2),
    host_only(
        "disableOOMKiller",
        Kind::Bool,
        "set on a host's group of v1; control groups v2, which the guest has, can't",
    ),
    translated("useHierarchy", Kind::Bool, "always on in control groups v2"),
    applied("checkBeforeUpdate", Kind::Bool),
];

const CPU: &[Field] = &[
    applied("shares", U64),
    applied("quota", I64),
    applied("burst", U64),
    applied("period", U64),
    applied("idle", I64),
    translated("cpus", Kind::Text, NUMBERS),
    translated(
        "mems",
        Kind::Text,
        "the VM is held to these on the host; the guest has one node, 0",
    ),
    refused("realtimeRuntime", I64, "control groups v2, which the guest has, can't"),
    translated("realtimePeriod", U64, "no effect without realtimeRuntime"),
];

const PIDS: &[Field] = &[applied("limit", I64)];

const BLOCK_IO: &[Field] = &[
    applied("weight", U16),
    translated("leafWeight", U16, NOT_V2),
    host_only("weightDevice", Kind::List(&Kind::Object(WEIGHT_DEVICE)), PROXYS_WEIGHT),
    host_only("throttleReadBpsDevice", Kind::List(&Kind::Object(THROTTLE_DEVICE)), PROXYS_RATE),
    host_only("throttleWriteBpsDevice", Kind::List(&Kind::Object(THROTTLE_DEVICE)), PROXYS_RATE),
    host_only("throttleReadIOPSDevice", Kind::List(&Kind::Object(THROTTLE_DEVICE)), PROXYS_RATE),
    host_only("throttleWriteIOPSDevice", Kind::List(&Kind::Object(THROTTLE_DEVICE)), PROXYS_RATE),
];

const WEIGHT_DEVICE: &[Field] = &[
    required(applied("major", I64)),
    required(applied("minor", I64)),
    applied("weight", U16),
    applied("leafWeight", U16),
];

const THROTTLE_DEVICE: &[Field] = &[
    required(applied("major", I64)),
    required(applied("minor", I64)),
    required(applied("rate", U64)),
];

const HUGEPAGE_LIMIT: &[Field] =
    &[required(applied("pageSize", Kind::Text)), required(applied("limit", U64))];

const NETWORK: &[Field] =
    &[refused("classID", U32, NET_V1), refused("priorities", Kind::Any, NET_V1)];
