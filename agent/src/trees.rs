//! The host's trees that containers are made of: roots and volumes.
//!
//! ```text
//! on the host ── a helper takes it ─► mounted here, and in the container ── its last container goes ─► unmounted here
//! ```
//!
//! Each directory that the host attaches is a file system of its own, which the kernel mounts in the agent's namespace when somebody
//! looks at it. It is let go of when no container uses it any more, for it keeps the host's tree busy: every file that the guest
//! remembers, and what is deleted there. Not before: what is mounted anew is another file system, and containers that use both would
//! share neither locks nor sockets.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{self, Arc, MutexGuard, PoisonError},
};

use kata_protocol::{ROOTS, VOLUMES};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::spec::Spec;

/// Which trees are used, and how often. Each has a lock of its own, for to unmount one may take long, and concerns no other.
#[derive(Debug, Default)]
pub struct Trees(sync::Mutex<HashMap<PathBuf, Arc<Mutex<usize>>>>);

/// The trees of one container.
#[derive(Debug)]
pub struct Uses {
    trees: Arc<Trees>,
    /// Those that it still uses.
    places: Mutex<Vec<PathBuf>>,
}

impl Trees {
    /// Counts what a container is made of, before any of it is looked at.
    pub async fn used_by(self: &Arc<Self>, root: &str, spec: &Spec) -> Arc<Uses> {
        let places = places(root, spec);
        for place in &places {
            *self.users_of(place).lock().await += 1;
        }
        Arc::new(Uses { trees: self.clone(), places: Mutex::new(places) })
    }

    /// The lock is held until it is unmounted: whoever counts it anew then mounts it anew, too.
    async fn let_go(&self, place: &Path) -> io::Result<()> {
        let users = self.users_of(place);
        let mut count = users.lock().await;
        if *count == 1 {
            let unmounted = place.to_owned();
            // The last use of a file system writes back what is left of it.
            spawn_blocking(move || unmount_if_mounted(&unmounted)).await??;
        }
        *count = count.saturating_sub(1);
        let unused = *count == 0;
        // With the count still held: nobody else lets go of it meanwhile. Nobody waits for a count who has the map.
        let mut all = self.all();
        drop(count);
        // Of ours and that of the map; whoever waits for the lock has one more, and whoever comes needs the map's.
        if unused && Arc::strong_count(&users) == 2 {
            all.remove(place);
        }
        Ok(())
    }

    fn users_of(&self, place: &Path) -> Arc<Mutex<usize>> {
        self.all().entry(place.to_owned()).or_default().clone()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Mutex<usize>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uses {
    /// Lets go of all of it, whatever of it fails: that is tried anew by the next call. The first failure is told.
    pub async fn end(&self) -> io::Result<()> {
        let mut places = self.places.lock().await;
        let (mut failed, mut ended) = (0, Ok(()));
        while let Some(place) = places.get(failed) {
            match self.trees.let_go(place).await {
                Ok(()) => drop(places.remove(failed)),
                Err(error) => {
                    failed += 1;
                    ended = ended.and(Err(error));
                }
            }
        }
        ended
    }
}

/// Its root, and the volumes that are bound into it; one that it has twice counts twice.
fn places(root: &str, spec: &Spec) -> Vec<PathBuf> {
    let sources = spec.mounts.iter().filter_map(|mount| mount.source.as_deref());
    let in_share = |path: &&str| {
        let parent = Path::new(path).parent();
        [ROOTS.1, VOLUMES.1].iter().any(|share| parent == Some(Path::new(share)))
    };
    [root].into_iter().chain(sources).filter(in_share).map(PathBuf::from).collect()
}

/// What is no mount point was never looked at, or is a file, which is of the share's own file system.
fn unmount_if_mounted(place: &Path) -> io::Result<()> {
    match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// That they are unmounted is for tests with a guest to see (tests/engines/tests/volumes.rs).
#[cfg(test)]
mod tests {
    use std::{future::ready, path::Path, pin::pin, sync::Arc};

    use kata_protocol::{ROOTS, VOLUMES};

    use super::{Spec, Trees, places};
    use crate::spec::Mount;

    fn spec(sources: &[&str]) -> Spec {
        let mount = |source: &&str| Mount { source: Some((*source).into()), ..Mount::default() };
        Spec { mounts: sources.iter().map(mount).collect(), ..Spec::default() }
    }

    #[test]
    fn only_what_the_host_has_attached_is_counted() {
        let (root, volume) = (format!("{}/c1", ROOTS.1), format!("{}/3", VOLUMES.1));
        let below = format!("{volume}/below");
        let others = ["proc", "/dev/null", "/run/kata/copies/3", VOLUMES.1, below.as_str()];
        let mut sources = others.to_vec();
        sources.push(&volume);
        let counted = places(&root, &spec(&sources));
        assert_eq!(counted, [root, volume].map(std::path::PathBuf::from));
    }

    #[tokio::test]
    async fn a_tree_is_let_go_of_with_its_last_container_and_once_by_each() {
        let trees = Arc::new(Trees::default());
        // None of them is there, which is no error.
        let volume = format!("{}/no-such", VOLUMES.1);
        let one = trees.used_by(&format!("{}/one", ROOTS.1), &spec(&[&volume, &volume])).await;
        let other = trees.used_by(&format!("{}/other", ROOTS.1), &spec(&[&volume])).await;
        assert_eq!(trees.all().len(), 3);
        one.end().await.unwrap();
        one.end().await.unwrap();
        assert_eq!(trees.all().len(), 2);
        assert_eq!(*trees.users_of(Path::new(&volume)).lock().await, 1);
        other.end().await.unwrap();
        assert!(trees.all().is_empty());
    }

    #[tokio::test]
    async fn a_tree_that_is_slow_to_let_go_of_holds_up_only_those_who_use_it() {
        let trees = Arc::new(Trees::default());
        let [slow, other] = ["slow", "other"].map(|name| format!("{}/{name}", VOLUMES.1));
        let unmounting = trees.users_of(Path::new(&slow)).lock_owned().await;
        let with_slow = spec(&[&slow]);
        let mut waiting = pin!(trees.used_by("", &with_slow));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("it does not wait"),
            () = ready(()) => {}
        }
        let uses = trees.used_by("", &spec(&[&other])).await;
        uses.end().await.unwrap();
        drop(unmounting);
        waiting.await.end().await.unwrap();
        assert!(trees.all().is_empty());
    }
}
