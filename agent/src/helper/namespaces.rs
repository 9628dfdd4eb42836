//! Namespaces of a container: those to join, those to make.

use std::{
    fs,
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    process::Pid,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use crate::{
    order::{Failure, Step},
    spec::{IdMapping, Linux, NamespaceKind},
};

fn link_type(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    }
}

/// Joins the namespaces that have a path; the caller's children are born in a joined pid namespace. That of groups is
/// returned, for the child to [join](join_groups).
///
/// The network namespace is always the sandbox's, whose links the host has made: a path or a wish for a new one is
/// the host's business.
pub fn join(linux: &Linux) -> Result<Option<OwnedFd>, Failure> {
    // All are opened before the first is joined: a joined mount namespace would change what paths mean.
    let mut found: Vec<(NamespaceKind, &str, OwnedFd)> = Vec::new();
    for namespace in linux.namespaces.iter().filter(|it| it.kind != NamespaceKind::Network) {
        let Some(path) = &namespace.path else { continue };
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step(|| format!("open namespace {path}"))?;
        found.push((namespace.kind, path, file));
    }
    // A user namespace comes first: it gives the right to join those that belong to it.
    found.sort_by_key(|(kind, ..)| *kind != NamespaceKind::User);
    let mut groups = None;
    for (kind, path, file) in found {
        if kind == NamespaceKind::Cgroup {
            groups = Some(file);
            continue;
        }
        move_into_link_name_space(file.as_fd(), Some(link_type(kind)))
            .step(|| format!("join namespace {path}"))?;
    }
    Ok(groups)
}

/// Joins a cgroup namespace: the work of a process that is in one of its groups, for out of it nobody can be born into one.
pub fn join_groups(groups: OwnedFd) -> Result<(), Failure> {
    move_into_link_name_space(groups.as_fd(), Some(LinkNameSpaceType::ControlGroup))
        .step(|| "join the cgroup namespace")
}

/// The namespaces that the clone makes. Mounts are always a container's own.
pub fn to_make(linux: &Linux) -> UnshareFlags {
    let mut flags = UnshareFlags::NEWNS;
    let kinds = [
        (NamespaceKind::Pid, UnshareFlags::NEWPID),
        (NamespaceKind::Ipc, UnshareFlags::NEWIPC),
        (NamespaceKind::Uts, UnshareFlags::NEWUTS),
        (NamespaceKind::User, UnshareFlags::NEWUSER),
    ];
    for (kind, flag) in kinds {
        flags.set(flag, linux.makes(kind));
    }
    flags
}

/// Makes the time namespace that the next child is born in, with the clocks' offsets.
pub fn make_time_namespace(linux: &Linux) -> Result<(), Failure> {
    if !linux.makes(NamespaceKind::Time) {
        return Ok(());
    }
    kata_sys::fork::unshare(UnshareFlags::NEWTIME).step(|| "make time namespace")?;
    for (clock, offset) in &linux.time_offsets {
        let line = format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
        fs::write("/proc/self/timens_offsets", line).step(|| format!("set offset of {clock}"))?;
    }
    Ok(())
}

/// Writes the id maps of a child in a new user namespace.
pub fn map_ids(child: Pid, linux: &Linux) -> Result<(), Failure> {
    let maps = [("uid_map", &linux.uid_mappings), ("gid_map", &linux.gid_mappings)];
    for (file, mappings) in maps {
        let path = format!("/proc/{}/{file}", child.as_raw_nonzero());
        // The kernel takes a map in one write only.
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut map| map.write_all(id_map(mappings).as_bytes()))
            .step(|| format!("write {file}"))?;
    }
    Ok(())
}

fn id_map(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container, map.host, map.size)).collect()
}

#[cfg(test)]
mod tests {
    use rustix::thread::UnshareFlags;

    use super::{id_map, to_make};
    use crate::spec::Linux;

    #[test]
    fn joined_and_network_namespaces_are_not_made() {
        let linux: Linux = serde_json::from_str(
            r#"{"namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "network"}]}"#,
        )
        .unwrap();
        assert_eq!(to_make(&linux), UnshareFlags::NEWNS | UnshareFlags::NEWPID);
    }

    #[test]
    fn id_maps_are_lines_of_container_host_size() {
        let linux: Linux = serde_json::from_str(
            r#"{"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 5000, "size": 9}]}"#,
        )
        .unwrap();
        assert_eq!(id_map(&linux.uid_mappings), "0 1000 1\n1 5000 9\n");
    }
}
