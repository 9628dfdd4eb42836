//! Resource limits of a process.

use rustix::process::{Resource, Rlimit as Limit, setrlimit};

use crate::{
    boot::OPEN_FILES,
    order::{Failure, Step},
    spec::Rlimit,
};

/// Open files of a process, until it asks for more: programs that select(2) can't have a higher number.
const SOFT_OPEN_FILES: u64 = 1024;

/// Sets what processes begin with that have no limit of their own in the spec; the rest they have of the agent.
pub fn begin() -> Result<(), Failure> {
    let limit = Limit { current: Some(SOFT_OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit).step(|| "lower the soft limit on open files")
}

/// Sets every limit of the spec.
pub fn apply(rlimits: &[Rlimit]) -> Result<(), Failure> {
    for rlimit in rlimits {
        let resource = resource(&rlimit.kind)?;
        let value = |value: u64| (value != u64::MAX).then_some(value);
        let limit = Limit { current: value(rlimit.soft), maximum: value(rlimit.hard) };
        setrlimit(resource, limit).step(|| format!("set {}", rlimit.kind))?;
    }
    Ok(())
}

fn resource(name: &str) -> Result<Resource, Failure> {
    Ok(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        unknown => return Err(Failure::invalid(format!("unknown rlimit {unknown:?}"))),
    })
}
