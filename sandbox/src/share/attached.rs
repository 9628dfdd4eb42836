//! Which volumes are attached, what each shows, and which containers use it (docs/design/0017-volumes-of-a-pod.md).

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::AsFd,
};

use kata_spec::IdMap;
use rustix::fs::{StatVfsMountFlags, fstat, fstatvfs};

/// What a tree shows to whoever looks into it: of two that show the same, one is as good as the other. It tells them apart for as long as
/// one of them is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    device: u64,
    inode: u64,
    /// Of the mount, but for read-only.
    flags: u64,
    id_map: Option<IdMap>,
}

impl Shown {
    /// What is shown by a tree with no other mount in it; `id_map` is that of the tree.
    ///
    /// # Errors
    /// When the tree can't be looked at.
    pub fn by(tree: impl AsFd, id_map: Option<IdMap>) -> io::Result<Self> {
        let root = fstat(&tree)?;
        let flags = fstatvfs(&tree)?.f_flag - StatVfsMountFlags::RDONLY;
        Ok(Self { device: root.st_dev, inode: root.st_ino, flags: flags.bits(), id_map })
    }
}

/// Whether a tree can be written to.
///
/// # Errors
/// When the tree can't be looked at.
pub fn is_writable(tree: impl AsFd) -> io::Result<bool> {
    Ok(!fstatvfs(&tree)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A volume that is attached.
#[derive(Debug)]
pub(super) struct Volume {
    /// None: another container's is never the same.
    pub(super) shown: Option<Shown>,
    /// The guest may write to it.
    pub(super) writable: bool,
    users: HashSet<String>,
    /// Whose volume it was to the last.
    left_by: Option<String>,
}

/// All that are attached, or have been given a number to be.
#[derive(Debug, Default)]
pub(super) struct Attached {
    next: usize,
    volumes: BTreeMap<usize, Volume>,
}

impl Attached {
    /// A number that nothing has had: the guest may remember what was there.
    pub(super) fn number(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// The volume that shows this, from now on also in use by the container.
    pub(super) fn used(&mut self, container: &str, shown: &Shown) -> Option<(usize, bool)> {
        let same = |volume: &&mut Volume| volume.shown.as_ref() == Some(shown);
        let (number, volume) = self
            .volumes
            .iter_mut()
            .find_map(|(number, volume)| Some((*number, Some(volume).filter(same)?)))?;
        volume.users.insert(container.to_owned());
        Some((number, volume.writable))
    }

    /// Notes one that is about to be attached for a container.
    pub(super) fn add(
        &mut self,
        container: &str,
        (shown, writable): (Option<Shown>, bool),
    ) -> usize {
        let number = self.number();
        let users = HashSet::from([container.to_owned()]);
        self.volumes.insert(number, Volume { shown, writable, users, left_by: None });
        number
    }

    /// Notes that one can be written to.
    pub(super) fn opened(&mut self, number: usize) {
        if let Some(volume) = self.volumes.get_mut(&number) {
            volume.writable = true;
        }
    }

    /// Takes a container from the users of all, and returns those that nobody uses, with whether it was the last that did. Nobody
    /// will: whatever becomes of the attempt to detach one, it is not what it was.
    pub(super) fn without(&mut self, container: &str) -> Vec<(usize, bool)> {
        let mut unused = Vec::new();
        for (number, volume) in &mut self.volumes {
            if volume.users.remove(container) {
                volume.left_by = Some(container.to_owned());
            }
            if volume.users.is_empty() {
                volume.shown = None;
                unused.push((*number, volume.left_by.as_deref() == Some(container)));
            }
        }
        unused
    }

    /// Forgets one that is detached.
    pub(super) fn remove(&mut self, number: usize) {
        self.volumes.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::{Attached, Shown};

    fn shown(inode: u64) -> Shown {
        Shown { device: 1, inode, flags: 0, id_map: None }
    }

    #[test]
    fn a_volume_is_there_until_the_last_container_is_gone() {
        let mut attached = Attached::default();
        let number = attached.add("one", (Some(shown(1)), false));
        let alone = attached.add("one", (None, true));
        assert_eq!(attached.used("other", &shown(2)), None);
        assert_eq!(attached.used("other", &shown(1)), Some((number, false)));
        attached.opened(number);
        assert_eq!(attached.used("other", &shown(1)), Some((number, true)));
        assert_eq!(attached.without("one"), [(alone, true)]);
        attached.remove(alone);
        assert!(attached.without("one").is_empty());
        assert_eq!(attached.without("other"), [(number, true)]);
        assert_eq!(attached.used("late", &shown(1)), None, "it is about to go");
        let again = attached.without("none");
        assert_eq!(again, [(number, false)], "what could not be detached is tried again");
        assert_eq!(attached.without("other"), [(number, true)], "it is still whose it was");
        attached.remove(number);
        assert!(attached.add("one", (None, true)) > number.max(alone));
    }
}
