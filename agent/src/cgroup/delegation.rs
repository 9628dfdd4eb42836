//! A container's group in the hands of the user of its program, as with runc: where the container has its groups to itself
//! and may write to them, that user may make groups below, and move its processes there. Limits stay the agent's. Two are given
//! theirs that runc leaves without, for in a guest it costs nobody else anything: a user that the maps do not have, by its own
//! number, and one of a container with the control groups of its host, which is here one with its own.

use std::{
    fs, io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use super::HIERARCHY;
use crate::{
    order::{Failure, Step},
    spec::{Mount, NamespaceKind, Spec},
};

/// What the kernel says to be needed for that.
const NEEDED: &str = "/sys/kernel/cgroup/delegate";

/// Who gets a group, as the guest numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    user: u32,
    /// That of the namespace's root, to whom nothing more is open by it: the files can be read by all as they are. But a helper
    /// that has joined the namespace clones processes into the group by what it may do there, which holds for files alone whose
    /// user and group both have a number in it.
    group: u32,
}

/// None where the group stays root's.
pub(super) fn owner(spec: &Spec) -> Option<Owner> {
    let linux = spec.linux.as_ref()?;
    let alone = linux.makes(NamespaceKind::Cgroup);
    let user = linux.outer_uid(spec.process.as_ref()?.user.uid);
    let owner = Owner { user, group: linux.outer_gid(0) };
    (user != 0 && alone && spec.mounts.iter().any(may_be_written)).then_some(owner)
}

fn may_be_written(mount: &Mount) -> bool {
    let words = |word: &&String| matches!(word.as_str(), "ro" | "rw" | "rro" | "rrw");
    let read_only = mount.options.iter().rfind(words).is_some_and(|word| word.ends_with("ro"));
    matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2"))
        && Path::new(&mount.destination) == Path::new(HIERARCHY)
        && !read_only
}

/// Gives a group away.
pub(super) fn give(group: &Path, owner: Owner) -> Result<(), Failure> {
    let needed = fs::read_to_string(NEEDED).step(|| format!("read {NEEDED}"))?;
    give_with(group, needed.lines(), owner)
}

fn give_with<'a>(
    group: &Path,
    files: impl Iterator<Item = &'a str>,
    owner: Owner,
) -> Result<(), Failure> {
    let files = files.map(|file| group.join(file));
    let all: Vec<PathBuf> = [group.to_owned()].into_iter().chain(files).collect();
    all.iter().try_for_each(|path| match chown(path, Some(owner.user), Some(owner.group)) {
        // The list is that of all controllers.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        given => given.step(|| format!("give {} to user {}", path.display(), owner.user)),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::{Owner, give_with, owner};
    use crate::spec::Spec;

    fn owner_of(user: u32, linux: &str, mount: &str) -> Option<(u32, u32)> {
        let spec = format!(
            r#"{{"process": {{"user": {{"uid": {user}}}}}, "linux": {linux}, "mounts": [{mount}]}}"#
        );
        let owner = owner(&serde_json::from_str::<Spec>(&spec).unwrap())?;
        Some((owner.user, owner.group))
    }

    const WRITABLE: &str =
        r#"{"type": "cgroup", "destination": "/sys/fs/cgroup/", "options": ["nosuid", "rw"]}"#;

    #[test]
    fn a_user_namespaces_root_has_the_group_that_it_may_write() {
        let mapped = r#"{"namespaces": [{"type": "user"}, {"type": "cgroup"}],
            "uidMappings": [{"containerID": 0, "hostID": 5000, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 6000, "size": 10}]}"#;
        assert_eq!(owner_of(0, mapped, WRITABLE), Some((5000, 6000)));
        assert_eq!(owner_of(3, mapped, WRITABLE), Some((5003, 6000)));
        for other in [&WRITABLE.replace("rw", "ro"), &WRITABLE.replace("fs/cgroup", "fs"), ""] {
            assert_eq!(owner_of(0, mapped, other), None, "{other}");
        }
    }

    #[test]
    fn groups_that_are_anothers_too_stay_roots() {
        let joined = r#"{"namespaces": [{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]}"#;
        assert_eq!(owner_of(7, joined, WRITABLE), None);
        let own = r#"{"namespaces": [{"type": "cgroup"}]}"#;
        assert_eq!(owner_of(7, own, WRITABLE), Some((7, 0)));
        assert_eq!(owner_of(0, own, WRITABLE), None);
    }

    #[test]
    fn files_that_a_group_does_not_have_are_not_missed() {
        let group = tempfile::tempdir().unwrap();
        for file in ["cgroup.procs", "pids.max"] {
            fs::write(group.path().join(file), "").unwrap();
        }
        // Only root can give to another.
        let own = rustix::process::getuid().as_raw();
        let user = if own == 0 { 7 } else { own };
        let owner = Owner { user, group: rustix::process::getgid().as_raw() };
        let files = ["cgroup.procs", "memory.reclaim"];
        give_with(group.path(), files.into_iter(), owner).unwrap();
        for given in [group.path().to_owned(), group.path().join("cgroup.procs")] {
            assert_eq!(fs::metadata(&given).unwrap().uid(), user, "{}", given.display());
        }
        assert_eq!(fs::metadata(group.path().join("pids.max")).unwrap().uid(), own);
        let nowhere = group.path().join("cgroup.procs/below");
        assert!(give_with(&nowhere, files.into_iter(), owner).is_err());
    }
}
