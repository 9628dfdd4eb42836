//! `process`, also on its own as the argument of exec.

use super::{
    Field, I32, Kind, TEXTS, U16, U32, U64, applied, host_only, names, refused, required,
    translated,
};

const WINDOWS: &str = "only for Windows";
const NOT_YET: &str = "the guest does not apply it yet";
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
    applied("oomScoreAdj", I32),
    host_only("apparmorProfile", Kind::Text, LSM),
    host_only("selinuxLabel", Kind::Text, LSM),
    refused("ioPriority", Kind::Any, NOT_YET),
    refused("scheduler", Kind::Any, NOT_YET),
    refused("execCPUAffinity", Kind::Any, NOT_YET),
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

const RLIMIT: &[Field] = &[
    required(applied("type", Kind::Word(names::RLIMITS))),
    required(applied("soft", U64)),
    required(applied("hard", U64)),
];
