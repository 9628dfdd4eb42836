//! What the guest holds: settings of the sandbox, and its containers.

use std::{
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use kata_protocol::{
    ROOTS, VOLUMES,
    agent::{CreateContainerRequest, StartSandboxRequest},
};
use kata_sys::signal_number::SignalNumber;
use rustix::mount::{MountFlags, mount_remount};
use tokio::time::timeout;

use crate::{
    clock,
    container::{Container, Creation, Makers},
    helper::{require_sysctls, set_all_sysctls, sysctl_paths},
    localhost::Localhost,
    memory,
    network::Network,
    order::{Failure, FailureKind, Step},
    places::Places,
    pod::PodPids,
    process::Process,
    streams::Wanted,
};

/// What containers share, when they share memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// As long as processes that were killed are waited for: one that the kernel holds may take for ever.
const MORTAL: Duration = Duration::from_secs(3);

/// As long as a name in a file system may be.
const MAX_ID: usize = 255;

/// The one sandbox of this guest.
#[derive(Default)]
pub struct Sandbox {
    pub makers: Makers,
    pub pids: PodPids,
    pub localhost: Localhost,
    containers: Places<Container>,
    network: Mutex<Network>,
}

impl Sandbox {
    /// Applies clock, entropy, hostname and network; without a container. Returns the inherited kernel parameters that could not be set.
    pub fn configure(&self, request: &StartSandboxRequest) -> Result<Vec<String>, Failure> {
        if request.clock_unix_ns != 0 {
            clock::set(request.clock_unix_ns).step(|| "set the clock")?;
        }
        clock::seed(&request.entropy).step(|| "seed the random pool")?;
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes()).step(|| "set the hostname")?;
        }
        let inherited = set_all_sysctls(sysctl_paths(&request.inherited_sysctls)?);
        let mut left_out: Vec<String> = inherited.into_iter().map(|(path, _)| path).collect();
        if request.shm_bytes != 0 {
            let size = format!("size={}", request.shm_bytes);
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(SHARED_MEMORY, flags, size.as_str())
                .step(|| "set the size of the shared memory")?;
        }
        left_out.extend(self.network().apply(&request.network)?.into_result()?);
        // Last, as runc sets them after all that was done to the namespace; and they may be of links.
        require_sysctls(sysctl_paths(&request.sysctls)?)?;
        Ok(left_out)
    }

    /// Creates a container.
    pub async fn create(&self, request: CreateContainerRequest) -> Result<Arc<Container>, Failure> {
        let id = request.container_id;
        check_id(&id)?;
        let holder = self.containers.hold(&id).ok_or_else(|| Failure {
            kind: FailureKind::Exists,
            message: format!("container {id} exists already"),
        })?;
        let created = match memory::make_all(&request.memory) {
            Ok(()) => self.create_reserved(&id, request.spec, request.root, &request.stdio).await,
            Err(failure) => Err(failure),
        };
        let wanted = self.containers.settle(&holder, created.as_ref().ok());
        let container = created?;
        if !wanted {
            // What can't be killed is not to keep its place either.
            container.signal_all(SignalNumber::KILL).ok();
            self.discard(&container).await;
            return Err(Failure {
                kind: FailureKind::State,
                message: format!("container {id} is no longer wanted"),
            });
        }
        Ok(container)
    }

    async fn create_reserved(
        &self,
        id: &str,
        spec: Vec<u8>,
        root: String,
        stdio: &kata_protocol::agent::Stdio,
    ) -> Result<Arc<Container>, Failure> {
        let streams = Wanted::parse(stdio)?;
        let creation = Creation { id: id.to_owned(), spec, root, streams };
        Ok(Arc::new(Container::create(creation, &self.makers).await?))
    }

    /// Takes back a container whose start has failed; its init is ending or has ended.
    pub async fn discard(&self, container: &Container) {
        container.init().wait().await;
        // What is left of it stays until the guest's end: the host has been told of the failure.
        if container.delete().await.is_ok() {
            self.containers.forget(&container.id, container);
        }
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        self.containers.get(id).ok_or_else(|| Failure {
            kind: FailureKind::NotFound,
            message: format!("no container {id}"),
        })
    }

    /// A process by the ids of its container and itself.
    pub fn process(&self, container_id: &str, exec_id: &str) -> Result<Arc<Process>, Failure> {
        self.container(container_id)?.process(exec_id)
    }

    /// Frees the record of a process that has ended; with init's, the container. One that is still being made is ended as soon
    /// as it is there.
    pub async fn delete(&self, container_id: &str, exec_id: &str) -> Result<(), Failure> {
        if exec_id.is_empty() && self.containers.give_up(container_id) {
            return Ok(());
        }
        let container = self.container(container_id)?;
        if !exec_id.is_empty() {
            return container.delete_added(exec_id);
        }
        container.delete().await?;
        self.containers.forget(container_id, &container);
        Ok(())
    }

    /// Kills every process of every container, and writes back to the host what the guest caches of its files; what does
    /// not end soon, or can't be killed, keeps nothing of the others from being written.
    pub async fn quiesce(&self) -> Result<(), Failure> {
        let containers = self.containers.all();
        for container in &containers {
            // The guest's end, which is near, is its end too.
            container.signal_all(SignalNumber::KILL).ok();
        }
        let ends = join_all(containers.iter().map(|container| container.init().wait()));
        timeout(MORTAL, ends).await.ok();
        flush().await
    }

    /// The network as the host has described it so far.
    pub fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes back to the host what the guest caches of its files.
pub async fn flush() -> Result<(), Failure> {
    let written = tokio::task::spawn_blocking(|| [ROOTS.1, VOLUMES.1].map(write_back)).await;
    let written = written.map_err(io::Error::other).step(|| "write caches back")?;
    written.into_iter().collect::<io::Result<()>>().step(|| "write caches back")
}

/// Of one file system, which need not be there.
fn write_back(mount_point: &str) -> io::Result<()> {
    match File::open(mount_point) {
        Ok(root) => Ok(rustix::fs::syncfs(root)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// An id names a cgroup directory, so it must be one name and no more.
fn check_id(id: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) || id.starts_with('.') {
        return Err(Failure::invalid(format!("{id:?} is no container id")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_id;

    #[test]
    fn an_id_is_one_name_in_a_file_system() {
        for good in ["a", "web-1.2_x+y", &"x".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
