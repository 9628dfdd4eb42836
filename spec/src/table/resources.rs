//! `linux.resources`. Limits hold in the guest; those of memory, CPU and pids are also set on the host.

use super::{
    Field, I64, Kind, TEXT_MAP, U16, U32, U64, applied, names, refused, required, translated,
};

const HOST_DEVICE: &str = "a device of the host is not the guest's";
const NOT_V2: &str =
    "control groups v2, which the guest has, know no such setting; runc ignores it there";
const NET_V1: &str = "control groups v2, which the guest has, know no network classes";

pub(super) const RESOURCES: &[Field] = &[
    applied("devices", Kind::List(&Kind::Object(DEVICE_RULE))),
    applied("memory", Kind::Object(MEMORY)),
    applied("cpu", Kind::Object(CPU)),
    applied("pids", Kind::Object(PIDS)),
    applied("blockIO", Kind::Object(BLOCK_IO)),
    applied("hugepageLimits", Kind::List(&Kind::Object(HUGEPAGE_LIMIT))),
    applied("network", Kind::Object(NETWORK)),
    refused("rdma", Kind::Any, HOST_DEVICE),
    applied("unified", TEXT_MAP),
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
    refused("disableOOMKiller", Kind::Bool, "control groups v2, which the guest has, can't"),
    translated("useHierarchy", Kind::Bool, "always on in control groups v2"),
    applied("checkBeforeUpdate", Kind::Bool),
];

const CPU: &[Field] = &[
    applied("shares", U64),
    applied("quota", I64),
    applied("burst", U64),
    applied("period", U64),
    applied("idle", I64),
    applied("cpus", Kind::Text),
    applied("mems", Kind::Text),
    refused("realtimeRuntime", I64, "control groups v2, which the guest has, can't"),
    translated("realtimePeriod", U64, "no effect without realtimeRuntime"),
];

const PIDS: &[Field] = &[applied("limit", I64)];

const BLOCK_IO: &[Field] = &[
    applied("weight", U16),
    translated("leafWeight", U16, NOT_V2),
    refused("weightDevice", Kind::Any, HOST_DEVICE),
    refused("throttleReadBpsDevice", Kind::Any, HOST_DEVICE),
    refused("throttleWriteBpsDevice", Kind::Any, HOST_DEVICE),
    refused("throttleReadIOPSDevice", Kind::Any, HOST_DEVICE),
    refused("throttleWriteIOPSDevice", Kind::Any, HOST_DEVICE),
];

const HUGEPAGE_LIMIT: &[Field] =
    &[required(applied("pageSize", Kind::Text)), required(applied("limit", U64))];

const NETWORK: &[Field] =
    &[refused("classID", U32, NET_V1), refused("priorities", Kind::Any, NET_V1)];
