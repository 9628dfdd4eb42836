//! The host as the engine sees it.
//!
//! The shim has left the host's mounts and let them go, so what an engine mounts or makes later is not where the shim
//! looks. What has to be looked up there is looked up by a fresh thread that enters the namespace in which the engine
//! started the shim. A thread may do so alone: it gives up sharing root and working directory with the others first,
//! and ends afterwards.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread,
};

use kata_sys::{
    fork,
    jail::{JailError, leave_namespaces},
};
use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use thiserror::Error;
use tokio::sync::oneshot;

/// Why something could not be looked up.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ViewError {
    #[error("open the mount namespace of the engine")]
    Open(#[source] io::Error),
    #[error("start a thread in the mount namespace of the engine")]
    Thread(#[source] io::Error),
    #[error("enter the mount namespace of the engine")]
    Enter(#[source] io::Error),
    #[error("copy the mount namespace of the engine")]
    Copy(#[source] io::Error),
    #[error(transparent)]
    Leave(#[from] JailError),
    #[error("the thread in the mount namespace of the engine panicked")]
    Panicked,
}

/// Whose mounts a thread works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// The engine's own.
    Engine,
    /// A copy of them, which is gone with the thread: so is all that it mounts there.
    Copy,
}

/// The engine's mount namespace.
#[derive(Debug, Clone)]
pub struct HostView(Arc<OwnedFd>);

impl HostView {
    /// The namespace that this process is in now.
    pub fn take() -> Result<Self, ViewError> {
        let namespace = File::open("/proc/self/ns/mnt").map_err(ViewError::Open)?;
        Ok(Self(Arc::new(namespace.into())))
    }

    /// Runs `work` there.
    pub async fn run<T: Send + 'static>(
        &self,
        mounts: Mounts,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ViewError> {
        self.enter(mounts).await?.run(work).await
    }

    /// A place there for several pieces of work.
    pub async fn enter(&self, mounts: Mounts) -> Result<Room, ViewError> {
        let (entered, receiver) = oneshot::channel();
        let (sender, work) = mpsc::channel::<Work>();
        let namespace = self.0.clone();
        let run = move || {
            let inside = enter(&namespace, mounts);
            let failed = inside.is_err();
            // Nobody waits when the request was given up; then nobody sends work either.
            drop(entered.send(inside));
            if !failed {
                work.iter().for_each(|work| work());
            }
        };
        thread::Builder::new().name("host view".into()).spawn(run).map_err(ViewError::Thread)?;
        receiver.await.map_err(|_| ViewError::Panicked)??;
        Ok(Room(sender))
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread in the engine's namespace, or in a copy of it, that ends when this is dropped.
#[derive(Debug)]
pub struct Room(mpsc::Sender<Work>);

impl Room {
    /// Runs `work` after what was given to it before.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ViewError> {
        let (done, receiver) = oneshot::channel();
        // As above: what was taken is let go with a result that nobody waits for.
        let work: Work = Box::new(move || drop(done.send(work())));
        self.0.send(work).map_err(|_| ViewError::Panicked)?;
        receiver.await.map_err(|_| ViewError::Panicked)
    }
}

fn enter(namespace: &OwnedFd, mounts: Mounts) -> Result<(), ViewError> {
    leave_namespaces(UnshareFlags::FS)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|e| ViewError::Enter(e.into()))?;
    if mounts == Mounts::Copy {
        fork::unshare(UnshareFlags::NEWNS).map_err(ViewError::Copy)?;
        // Nothing gets out; and what is taken here of the host's shared mounts follows them from now on, if it is asked to.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(|e| ViewError::Copy(e.into()))?;
    }
    Ok(())
}
