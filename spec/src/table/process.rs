//! `process`, also on its own as the argument of exec.

use super::{
    Field, I32, Kind, TEXTS, U16, U32, U64, applied, host_only, names, refused, required,
    translated,
};

const WINDOWS: &str = "only for Windows";
const LSM: &str = "the guest kernel has no such module; the VM is the boundary";

/// A program and what it may do.
pub const PROCESS: &[Field] = &[
    translated("terminal", Kind::Bool, "the guest's pty, raw on the host"),
    applied("consoleSize", Kind::Object(CONSOLE_SIZE)),
    applied("user", Kind::Object(USER)),
    required(applied("args", TEXTS)),
    applied("env", TEXTS),
    required(applied("cwd", Kind::Text)),
    applied("capabilities", Kind::Object(CAPABILITY_SETS)),
    applied("rlimits", Kind::List(&Kind::Object(RLIMIT))),
    applied("noNewPrivileges", Kind::Bool),
    applied("oomScoreAdj", Kind::Number(-1000, 1000)),
    host_only("apparmorProfile", Kind::Text, LSM),
    host_only("selinuxLabel", Kind::Text, LSM),
    applied("ioPriority", Kind::Object(IO_PRIORITY)),
    applied("scheduler", Kind::Object(SCHEDULER)),
    applied("execCPUAffinity", Kind::Object(CPU_AFFINITY)),
    refused("commandLine", Kind::Text, WINDOWS),
];

const CONSOLE_SIZE: &[Field] = &[applied("height", U16), applied("width", U16)];

const USER: &[Field] = &[
    applied("uid", U32),
    applied("gid", U32),
    applied("umask", U32),
    applied("additionalGids", Kind::List(&U32)),
    refused("username", Kind::Text, WINDOWS),
];

/// Unknown capabilities are left out of the guest's copy, as runc leaves them out.
const CAPABILITY_SETS: &[Field] = &[
    applied("bounding", TEXTS),
    applied("effective", TEXTS),
    applied("inheritable", TEXTS),
    applied("permitted", TEXTS),
    applied("ambient", TEXTS),
];

const IO_PRIORITY: &[Field] = &[
    required(applied("class", Kind::Word(names::IO_CLASSES))),
    applied("priority", Kind::Number(0, 7)),
];

const SCHEDULER: &[Field] = &[
    required(applied("policy", Kind::Word(names::SCHEDULERS))),
    applied("nice", Kind::Number(-20, 19)),
    applied("priority", I32),
    applied("flags", Kind::List(&Kind::Word(names::SCHEDULER_FLAGS))),
    applied("runtime", U64),
    applied("deadline", U64),
    applied("period", U64),
];

/// Numbers of the guest's CPUs.
const CPU_AFFINITY: &[Field] = &[applied("initial", Kind::Text), applied("final", Kind::Text)];

const RLIMIT: &[Field] = &[
    required(applied("type", Kind::Word(names::RLIMITS))),
    required(applied("soft", U64)),
    required(applied("hard", U64)),
];
