//! Resource limits of a process.

use rustix::process::{Resource, Rlimit as Limit, getrlimit, setrlimit};

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

/// Makes room for every limit of the spec, and takes none away: root of a user namespace may raise none, nor has its namespace
/// more than who made it, but who sees a container into being needs more than its program may have.
pub fn make_room(rlimits: &[Rlimit]) -> Result<(), Failure> {
    let larger = |one: Option<u64>, other: Option<u64>| Some(one?.max(other?));
    set_all(rlimits, |resource, wanted| {
        let now = getrlimit(resource);
        let current = larger(now.current, wanted.current);
        Limit { current, maximum: larger(now.maximum, wanted.maximum) }
    })
}

/// Sets every limit of the spec.
pub fn apply(rlimits: &[Rlimit]) -> Result<(), Failure> {
    set_all(rlimits, |_, wanted| wanted)
}

fn set_all(rlimits: &[Rlimit], limit: impl Fn(Resource, Limit) -> Limit) -> Result<(), Failure> {
    for rlimit in rlimits {
        let resource = resource(&rlimit.kind)?;
        let value = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Limit { current: value(rlimit.soft), maximum: value(rlimit.hard) };
        setrlimit(resource, limit(resource, wanted)).step(|| format!("set {}", rlimit.kind))?;
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

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, getrlimit};

    use super::{Rlimit, make_room};

    #[test]
    fn room_is_made_and_none_taken() {
        let limits = || [Resource::Nofile, Resource::Fsize].map(getrlimit);
        let before = limits();
        let kinds = ["RLIMIT_NOFILE", "RLIMIT_FSIZE"];
        let small = kinds.map(|kind| Rlimit { kind: kind.to_owned(), soft: 1, hard: 2 });
        make_room(&small).unwrap();
        assert_eq!(limits(), before);
        let [files, _] = before;
        let (soft, hard) = (files.current.unwrap_or(u64::MAX), files.maximum.unwrap_or(u64::MAX));
        make_room(&[Rlimit { kind: kinds[0].to_owned(), soft: hard, hard: soft }]).unwrap();
        assert_eq!(limits()[0].current, files.maximum, "soft may be as high as hard");
    }
}
