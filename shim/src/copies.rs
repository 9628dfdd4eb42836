//! Volumes that the guest holds copies of, so that programs there are told of changes (docs/design/0008-watched-volumes.md).
//!
//! ```text
//! a kubelet's volume ── small? ─► Copy ── its container enters the guest ─► written there ── inotify, and it differs ─┐
//!                         └ no: shared like any other                            ▲                                     │
//!                                                                                └─────────────────────────────────────┘
//! ```
//!
//! One inotify instance a sandbox, since a host has 128 of them for all that root runs; a host that has none left, or no watch,
//! shares the volume.
//! It tells that something has changed, never what: each copy is read anew, and written if it differs. Reading and writing
//! one copy is under its lock, so that what was read later is written later.

mod snapshot;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use kata_protocol::agent::{RemoveVolumeRequest, WriteVolumeRequest};
use kata_sandbox::{
    agent::{Agent, AgentError},
    lifecycle::Sandbox,
};
use kata_spec::{Origin, VolumeSource};
use kata_sys::{causes::chain, watch::watch};
use protobuf::Message;
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{MissedTickBehavior, interval},
};

use self::snapshot::{SnapshotError, snapshot};

/// The kinds of volume that a kubelet writes the same way: by filling a directory and renaming a link.
const KINDS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// A content that goes while it is read has been replaced: then the next one is there.
const ATTEMPTS: usize = 3;

/// Between two attempts to write what a guest did not take.
const AGAIN: Duration = Duration::from_secs(30);

/// A volume that the guest has a copy of.
pub struct Copy {
    number: u64,
    tree: OwnedFd,
    /// Of what the guest was given; also the order of reading and writing.
    written: tokio::sync::Mutex<Option<u64>>,
    /// Why the guest is behind, as it was told last.
    told: Mutex<Option<String>>,
}

/// The copies of a sandbox.
#[derive(Default)]
pub struct Copies {
    /// None: this host has no more.
    inotify: OnceLock<Option<OwnedFd>>,
    all: Mutex<Vec<Weak<Copy>>>,
}

impl Copies {
    /// A copy of a volume, if that is one of a kubelet's, small, and can be watched.
    pub fn copy(
        self: &Arc<Self>,
        volume: &VolumeSource,
        (tree, sandbox): (&OwnedFd, &Arc<Sandbox>),
    ) -> io::Result<Option<Arc<Copy>>> {
        if !is_a_kubelets(volume) {
            return Ok(None);
        }
        if let Err(why) = snapshot(tree, 0) {
            let mount = volume.mount;
            tracing::info!(mount, %why, "a volume is shared, and its changes are not told");
            return Ok(None);
        }
        let Some(inotify) = self.inotify.get_or_init(|| self.begin(sandbox)) else {
            return Ok(None);
        };
        let flags = WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
        let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
        if let Err(error) = inotify::add_watch(inotify, path, flags | WatchFlags::ONLYDIR) {
            let limit = "fs.inotify.max_user_watches";
            let mount = volume.mount;
            tracing::warn!(mount, %error, "changes of a volume are not told; see {limit}");
            return Ok(None);
        }
        let copy = Copy {
            number: sandbox.tree().number() as u64,
            tree: tree.try_clone()?,
            written: tokio::sync::Mutex::default(),
            told: Mutex::default(),
        };
        let copy = Arc::new(copy);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|copy| copy.strong_count() > 0);
        all.push(Arc::downgrade(&copy));
        Ok(Some(copy))
    }

    fn begin(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<OwnedFd> {
        let begun = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(|fd| {
                let events = watch(fd.try_clone()?, Interest::READABLE)?;
                tokio::spawn(follow(Arc::downgrade(self), events, sandbox.clone()));
                Ok(fd)
            });
        match begun {
            Ok(fd) => Some(fd),
            Err(error) => {
                tracing::warn!(%error, "changes of volumes are not told; see fs.inotify.max_user_instances");
                None
            }
        }
    }

    /// Writes what has changed; says whether the guest is left behind for now.
    async fn write_changes(&self, agent: &Agent) -> bool {
        let mut behind = false;
        for copy in self.live() {
            let followed = copy.follow(agent).await;
            if let Some(error) = copy.news(&followed) {
                let number = copy.number;
                tracing::warn!(number, error, "a volume has changed, and the guest's copy has not");
            }
            // What can't be read now is another when it can.
            behind |= matches!(followed, Err(CopyError::Write(_)));
        }
        behind
    }

    fn live(&self) -> Vec<Arc<Copy>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Writes what has changed, until the sandbox is gone.
async fn follow(copies: Weak<Copies>, events: AsyncFd<OwnedFd>, sandbox: Arc<Sandbox>) {
    let mut again = interval(AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut behind = false;
    loop {
        let ready = tokio::select! {
            ready = events.readable() => Some(ready),
            _ = again.tick(), if behind => None,
            _ = sandbox.lost() => return,
        };
        if let Some(ready) = ready {
            let Ok(mut ready) = ready else { return };
            if let Err(error) = drain(events.get_ref()) {
                tracing::warn!(%error, "follow changes of volumes");
                return;
            }
            ready.clear_ready();
        }
        let Some(copies) = copies.upgrade() else { return };
        let Ok(agent) = sandbox.agent() else { continue };
        behind = copies.write_changes(&agent).await;
        again.reset();
    }
}

/// Reads all that there is; what it says does not matter.
fn drain(inotify: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(inotify, &mut buffer) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Why a copy is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The volume on the host.
    #[error(transparent)]
    Read(#[from] SnapshotError),
    /// The guest.
    #[error(transparent)]
    Write(#[from] AgentError),
}

impl Copy {
    /// Number of the volume; the copy in the guest has it too.
    pub fn number(&self) -> usize {
        // It came from one.
        usize::try_from(self.number).unwrap_or(usize::MAX)
    }

    /// Makes it in the guest, whatever is there.
    pub async fn write(&self, agent: &Agent) -> Result<(), CopyError> {
        let mut written = self.written.lock().await;
        let (request, hash) = self.read()?;
        agent.write_volume(&request).await?;
        *written = Some(hash);
        Ok(())
    }

    /// Takes it away again.
    pub async fn remove(&self, agent: &Agent) -> Result<(), AgentError> {
        let mut written = self.written.lock().await;
        if written.take().is_some() {
            let request = RemoveVolumeRequest { number: self.number, ..Default::default() };
            agent.remove_volume(&request).await?;
        }
        Ok(())
    }

    /// Changes it if it is in the guest and the volume is another by now.
    async fn follow(&self, agent: &Agent) -> Result<(), CopyError> {
        let mut written = self.written.lock().await;
        let Some(before) = *written else { return Ok(()) };
        let (request, hash) = self.read()?;
        if hash != before {
            agent.write_volume(&request).await?;
            *written = Some(hash);
        }
        Ok(())
    }

    /// Why the guest is behind, unless that was told: it is tried again for as long as the container lives.
    fn news(&self, followed: &Result<(), CopyError>) -> Option<String> {
        let why = followed.as_ref().err().map(|error| chain(error));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *told != why;
        told.clone_from(&why);
        why.filter(|_| is_new)
    }

    fn read(&self) -> Result<(WriteVolumeRequest, u64), SnapshotError> {
        let mut attempts = 1;
        let request = loop {
            match snapshot(&self.tree, self.number) {
                Err(SnapshotError::Gone) if attempts < ATTEMPTS => attempts += 1,
                read => break read?,
            }
        };
        let mut hasher = DefaultHasher::new();
        // Messages of these types always have a form on the wire.
        request.write_to_bytes().unwrap_or_default().hash(&mut hasher);
        Ok((request, hasher.finish()))
    }
}

/// What the container may not write to, and a kubelet renews.
fn is_a_kubelets(volume: &VolumeSource) -> bool {
    let Origin::Path(path) = &volume.origin else { return false };
    let above = |path: &Path| Some(path.parent()?.file_name()?.to_str()?.to_owned());
    let kind = above(path).is_some_and(|kind| KINDS.contains(&kind.as_str()));
    let in_volumes = path.parent().and_then(above).is_some_and(|name| name == "volumes");
    // What is mounted below on the host a copy would not have.
    let plain = volume.directory && volume.read_only && volume.id_map.is_none() && volume.undivided;
    kind && in_volumes && plain
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::OwnedFd, unix::fs::symlink},
        sync::{Arc, Mutex},
    };

    use kata_spec::{Origin, VolumeSource};

    use super::{Copies, Copy, is_a_kubelets};
    use crate::container::fake_agent::FakeAgent;

    impl Copy {
        /// One whose content in the guest is not that of the tree.
        pub fn in_guest(number: u64, tree: OwnedFd) -> Arc<Self> {
            let written = tokio::sync::Mutex::new(Some(0));
            Arc::new(Self { number, tree, written, told: Mutex::default() })
        }
    }

    /// A volume as a kubelet makes it.
    fn volume() -> tempfile::TempDir {
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir(volume.path().join("..1")).unwrap();
        symlink("..1", volume.path().join("..data")).unwrap();
        volume
    }

    #[tokio::test]
    async fn a_reason_is_told_once_until_there_is_another() {
        let volume = volume();
        let copy = Copy::in_guest(0, fs::File::open(volume.path()).unwrap().into());
        let connected = FakeAgent::connected(None).await;
        let refused = copy.follow(&connected.agent).await;
        assert!(copy.news(&refused).is_some());
        assert!(copy.news(&copy.follow(&connected.agent).await).is_none());
        fs::remove_file(volume.path().join("..data")).unwrap();
        assert!(copy.news(&copy.follow(&connected.agent).await).is_some(), "it can't be read");
        assert!(copy.news(&Ok(())).is_none());
        assert!(copy.news(&refused).is_some(), "it was right meanwhile");
    }

    #[tokio::test]
    async fn what_a_guest_did_not_take_is_still_to_be_written() {
        let volume = volume();
        let copy = Copy::in_guest(0, fs::File::open(volume.path()).unwrap().into());
        let copies = Copies::default();
        copies.all.lock().unwrap().push(Arc::downgrade(&copy));
        // It takes no volume.
        let connected = FakeAgent::connected(None).await;
        assert!(copies.write_changes(&connected.agent).await);
        *copy.written.lock().await = Some(copy.read().unwrap().1);
        assert!(!copies.write_changes(&connected.agent).await, "it has not changed");
    }

    #[test]
    fn only_what_a_kubelet_renews_is_copied() {
        let volume = |path: &str, read_only, undivided| VolumeSource {
            mount: 0,
            origin: Origin::Path(path.into()),
            recursive: true,
            undivided,
            directory: true,
            read_only,
            read_only_below: false,
            id_map: None,
            memory: None,
            follows_host: false,
        };
        let settings = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/settings";
        assert!(is_a_kubelets(&volume(settings, true, true)));
        assert!(!is_a_kubelets(&volume(settings, false, true)));
        assert!(!is_a_kubelets(&volume(settings, true, false)));
        for other in [
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/x",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/settings/key",
            "/kubernetes.io~configmap/settings",
            "/",
        ] {
            assert!(!is_a_kubelets(&volume(other, true, true)), "{other}");
        }
    }
}
