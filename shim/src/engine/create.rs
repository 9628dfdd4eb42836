//! Task.Create and Task.Exec: from an engine's request to a container, or a process, with a monitor.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use kata_engine_api::{
    containerd::task,
    handover::{FailureKind, TerminalSize},
    monitor::{self, Network as MonitorNetwork, Plan, Terminal},
};
use kata_hooks::{Hooks, life::Creating};
use kata_sandbox::network::Namespace;
use kata_spec::{
    Checked, Network, Trees, check_beside, parse_process, read_config, resolve_program,
};
use kata_sys::{causes::chain, spawn::Child};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    Engine,
    files::{self, Files},
    hooks,
    place::CONTAINERS,
    pod::{self, Neighbour, Neighbours},
    pod_config,
    rootfs::{self, Mount},
    stdio::{Names, Stdio},
    view::{Mounts, Room},
};
use crate::{
    container::{Container, Role},
    failure::Refusal,
    monitor::Monitor,
    offline,
    process::Process,
    service::{Creation, network_path},
};

/// What only the engine's own view shows, taken out of it.
struct Seen {
    role: Role,
    spec: Checked,
    shares_pids: bool,
    /// Host path of what is bound to `/dev/shm`.
    shared_memory: Option<PathBuf>,
    hooks: Hooks,
    /// None when hooks may change what they are, and for a container that never runs.
    trees: Option<Trees>,
    network: Option<OwnedFd>,
    view: Shown,
}

/// What those see who enter a monitor's namespaces: root, and volumes with their places.
type Shown = (OwnedFd, Vec<(OwnedFd, PathBuf)>);

/// A monitor to be started.
struct Wanted {
    container: String,
    exec: Option<String>,
    stdio: Stdio,
    network: NetworkPlan,
    view: Option<Shown>,
    directory: Arc<OwnedFd>,
}

impl Engine {
    /// Makes a container; returns the pid that stands for it.
    pub async fn create(&self, request: &task::CreateTaskRequest) -> Result<u32, Refusal> {
        if !request.checkpoint.is_empty() {
            let message = "restoring from a checkpoint is not supported";
            return Err(Refusal::new(FailureKind::Unimplemented, message));
        }
        let reservation = self.service.reserve(&request.id)?;
        let made = self.create_reserved(request).await;
        if made.is_err() {
            self.service.release(reservation).await;
        }
        made
    }

    async fn create_reserved(&self, request: &task::CreateTaskRequest) -> Result<u32, Refusal> {
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mounts: Vec<Mount> = request.rootfs.iter().map(Mount::from).collect();
        let bundle = PathBuf::from(&request.bundle);
        let neighbours = self.neighbours();
        let files = self.files.get().map(Files::clone_mount).transpose();
        let files = files.map_err(|e| Refusal::internal(&e))?;
        let look = move || look(&bundle, &mounts, &neighbours, files.as_ref());
        let room = self.view.enter(Mounts::Copy).await.map_err(|e| Refusal::internal(&e))?;
        let seen = room.run(look).await.map_err(|e| Refusal::internal(&e))??;
        let directory = self.make_directory(&request.id)?;
        let made = self.make(&request.id, seen, (names, directory, &room)).await;
        if made.is_err() {
            self.undo_hooks(&request.id, &room).await;
            self.remove_directory(&request.id);
        }
        made
    }

    async fn make(
        &self,
        id: &str,
        seen: Seen,
        (names, directory, room): (Names, Arc<OwnedFd>, &Room),
    ) -> Result<u32, Refusal> {
        let Seen { role, spec, shares_pids, shared_memory, hooks, trees, network, view } = seen;
        let joined = match (self.service.network(), network) {
            (Some(ours), _) => Some(ours),
            (None, network) => network.map(Arc::new),
        };
        let network = match (&joined, &spec.network) {
            (Some(namespace), _) => NetworkPlan::Join(namespace.clone()),
            (None, Network::New) => NetworkPlan::New,
            // Its namespace was opened, or it would not have come so far.
            (None, Network::Path(_)) => NetworkPlan::New,
        };
        let wanted = Wanted {
            container: id.to_owned(),
            exec: None,
            stdio: self.open(id, &names).await?,
            network,
            view: Some(view),
            directory: directory.clone(),
        };
        let monitor = self.start_monitor(wanted).await?;
        let pid = monitor.pid;
        let namespace = match (joined, &spec.network) {
            (Some(namespace), _) => Some(namespace),
            (None, Network::New) => Some(Arc::new(namespace_of(pid)?)),
            (None, _) => None,
        };
        let network = match &namespace {
            Some(fd) => {
                let fd = fd.try_clone().map_err(|e| Refusal::internal(&e))?;
                Some(Namespace { fd, path: network_path(&spec, pid) })
            }
            None => None,
        };
        let hooks = hooks::creating(hooks, &spec, (id, pid));
        let (spec, trees) =
            match self.run_hooks(hooks, (role, spec, trees), (&namespace, room)).await {
                Ok(ready) => ready,
                Err(refusal) => {
                    monitor.kill();
                    return Err(refusal);
                }
            };
        if let Some(namespace) = namespace {
            self.service.keep_network(namespace);
        }
        let terminal = names.terminal.then(|| spec.process.terminal_size.map(size));
        let creation = Creation {
            id: id.to_owned(),
            role,
            spec,
            shares_pids,
            shares_memory: role == Role::Member && self.is_the_pods(shared_memory.as_deref()),
            trees,
            layers: None,
            network,
            monitor,
            terminal,
            names,
            directory,
        };
        self.service.create_reserved(creation).await?;
        if role == Role::Pod {
            self.service.keep_shared_memory(shared_memory);
        }
        Ok(pid)
    }

    /// Whether shared memory, bound from this place if from any, is that of all the pod. An engine that makes no container
    /// for the pod makes no place for it either.
    fn is_the_pods(&self, bound: Option<&Path>) -> bool {
        match (self.files.get(), bound) {
            (Some(_), bound) => bound.is_none(),
            (None, Some(bound)) => self.service.shared_memory().as_deref() == Some(bound),
            (None, None) => false,
        }
    }

    /// Runs the hooks of the creation, and then takes the trees, if they have not been taken yet.
    async fn run_hooks(
        &self,
        hooks: Creating,
        (role, spec, trees): (Role, Checked, Option<Trees>),
        (network, room): (&Option<Arc<OwnedFd>>, &Room),
    ) -> Result<(Checked, Option<Trees>), Refusal> {
        self.keep_hooks(&hooks)?;
        if !hooks::precede_trees(&hooks.hooks) {
            return Ok((spec, trees));
        }
        let network = network.clone();
        let run = move || {
            let mut spec = spec;
            let look = || {
                spec.look_below_volumes();
                take(role, &spec)
            };
            let trees = hooks.run(network.as_ref().map(|network| network.as_fd()), look)?;
            Ok((spec, trees))
        };
        room.run(run).await.map_err(|e| Refusal::internal(&e))?
    }

    /// Makes an additional process, which is started later.
    pub async fn add(&self, request: &task::ExecProcessRequest) -> Result<Arc<Process>, Refusal> {
        let container = self.service.container(&request.id)?;
        if container.process(&request.exec_id).is_ok() {
            let message = format!("process {:?} exists already", request.exec_id);
            return Err(Refusal::new(FailureKind::AlreadyExists, message));
        }
        let checked = parse_process(&request.spec.value, "process").map_err(|e| invalid(&e))?;
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let stdio = self.open(&request.id, &names).await?;
        let network = self.service.network().map_or(NetworkPlan::New, NetworkPlan::Join);
        let wanted = Wanted {
            container: request.id.clone(),
            exec: Some(request.exec_id.clone()),
            stdio,
            network,
            view: None,
            directory: container.directory().clone(),
        };
        let monitor = self.start_monitor(wanted).await?;
        let terminal = names.terminal.then(|| checked.terminal_size.map(size));
        let what = (checked.guest_process(), names);
        container.add(&request.exec_id, monitor, what, terminal).await
    }

    /// Opens stdio in the engine's view; a program that takes output sees nothing else of ours, and is reaped.
    async fn open(&self, id: &str, names: &Names) -> Result<Stdio, Refusal> {
        let (names, id) = (names.clone(), id.to_owned());
        let namespace = self.events.namespace().to_owned();
        let open = move || Stdio::open(&names, (&id, &namespace));
        let stdio = self.view.run(Mounts::Engine, open).await.map_err(|e| Refusal::internal(&e))?;
        let mut stdio = stdio.map_err(|e| Refusal::internal(&e))?;
        if let Some(logger) = stdio.logger.take() {
            tokio::spawn(reap(logger));
        }
        Ok(stdio)
    }

    /// Starts a monitor, and sees to it that it is reaped.
    async fn start_monitor(&self, wanted: Wanted) -> Result<Monitor, Refusal> {
        let program = self.monitor.clone();
        let start = move || {
            let plan = Plan {
                container: &wanted.container,
                exec: wanted.exec.as_deref(),
                stdio: wanted.stdio.borrow(),
                // Its size comes with the engine's calls.
                terminal: Terminal::None,
                network: match &wanted.network {
                    NetworkPlan::New => MonitorNetwork::New,
                    NetworkPlan::Join(namespace) => MonitorNetwork::Join(namespace.as_fd()),
                },
                view: wanted.view.as_ref().map(|(root, volumes)| monitor::View {
                    root: root.as_fd(),
                    volumes: volumes
                        .iter()
                        .map(|(fd, path)| (fd.as_fd(), path.as_path()))
                        .collect(),
                }),
                directory: wanted.directory.as_fd(),
            };
            let (monitor, readiness) = monitor::start(&program, &plan)?;
            readiness.wait().map(|()| monitor)
        };
        let started = tokio::task::spawn_blocking(start).await;
        let started = started.map_err(|e| Refusal::internal(&e))?;
        let started = started.map_err(|e| Refusal::internal(&e))?;
        let pid = started.pid();
        let pidfd = started.child.pidfd.try_clone().map_err(|e| Refusal::internal(&e))?;
        let (until_reaped, reaped) = watch::channel(());
        tokio::spawn(async move {
            reap(started.child).await;
            drop(until_reaped);
        });
        let monitor = Monitor::new(started.control, pid).map_err(|e| Refusal::internal(&e))?;
        Ok(monitor.of_ours(pidfd, reaped))
    }

    fn neighbours(&self) -> Neighbours {
        let containers = self.service.containers();
        let known = containers.iter().filter_map(|container| {
            let neighbour = match container.role() {
                Role::Pod => Neighbour::Pod,
                Role::Alone | Role::Member => Neighbour::Running(container.guest_pid()?),
            };
            Some((container.init().monitor.pid, neighbour))
        });
        known.collect()
    }

    fn make_directory(&self, id: &str) -> Result<Arc<OwnedFd>, Refusal> {
        let path = self.service.directory().join(CONTAINERS).join(id);
        let failed = |e: io::Error| {
            let kind = match e.kind() {
                io::ErrorKind::AlreadyExists => FailureKind::AlreadyExists,
                _ => FailureKind::Internal,
            };
            Refusal::new(kind, format!("make {}: {e}", path.display()))
        };
        fs::create_dir_all(self.service.directory().join(CONTAINERS)).map_err(failed)?;
        fs::create_dir(&path).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty());
        Ok(Arc::new(directory.map_err(|e| failed(e.into()))?))
    }

    /// Takes the record of a container away.
    pub fn remove_directory(&self, id: &str) {
        let path = self.service.directory().join(CONTAINERS).join(id);
        // With the sandbox everything of its goes, this too.
        if let Err(error) = offline::remove(&path) {
            tracing::warn!(%error, path = %path.display(), "remove the record of a container");
        }
    }

    /// Deletes a container that has ended.
    pub async fn delete(&self, container: &Container) -> Result<(), Refusal> {
        let id = container.init().container_id.clone();
        container.init().kill_monitor().await;
        let owed = self.owed(&id);
        self.service.delete(&id).await?;
        self.remove_directory(&id);
        self.poststop(owed).await;
        Ok(())
    }
}

/// Network namespace of a monitor that is to be started.
enum NetworkPlan {
    New,
    Join(Arc<OwnedFd>),
}

async fn reap(child: Child) {
    if let Err(error) = kata_sandbox::process::exit(&child).await {
        tracing::warn!(%error, "wait for a process of a container");
    }
}

/// Everything that has to be done in the engine's view of the host.
fn look(
    bundle: &Path,
    mounts: &[Mount],
    neighbours: &Neighbours,
    files: Option<&files::Detached>,
) -> Result<Seen, Refusal> {
    let config = bundle.join("config.json");
    let text = read_config(&config).map_err(|e| read_error(&config, &e))?;
    let mut value: Value = serde_json::from_slice(&text).map_err(|e| read_error(&config, &e))?;
    let role = pod::role(&value);
    if let (Role::Member, Some(files)) = (role, files) {
        let files = files.attach().map_err(|e| Refusal::internal(&e))?;
        pod_config::bind_files(&mut value, files);
    }
    rootfs::mount_all(mounts, &bundle.join("rootfs")).map_err(|e| Refusal::internal(&e))?;
    let guest_path = |kind: &str, path: &Path| pod::guest_path(neighbours, kind, path);
    let spec = check_beside(&value, bundle, &guest_path).map_err(|e| invalid(&e))?;
    let hooks = hooks::of(&spec)?;
    let shares_pids = pod::shares_pids(&value, neighbours);
    let shared_memory = pod::shared_memory(&value);
    let trees = match hooks::precede_trees(&hooks) {
        true => None,
        false => take(role, &spec)?,
    };
    let seen = Trees::seen(&spec).map_err(|e| Refusal::internal(&e))?;
    let volumes = seen.volumes.into_iter().map(|(fd, path)| (fd, path.to_owned()));
    let view = (seen.root, volumes.collect());
    let network = match &spec.network {
        Network::Path(path) => Some(open_namespace(path)?),
        Network::New => None,
    };
    Ok(Seen { role, spec, shares_pids, shared_memory, hooks, trees, network, view })
}

/// Root and volumes; none of the container that stands for the pod, which never runs.
fn take(role: Role, spec: &Checked) -> Result<Option<Trees>, Refusal> {
    if role == Role::Pod {
        return Ok(None);
    }
    resolve_program(spec).map_err(|e| program_error(&e))?;
    Trees::take(spec).map(Some).map_err(|e| Refusal::internal(&e))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Refusal> {
    // A fifo in its place must not hold us up; whoever enters it checks what it is.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
        let message = format!("open the network namespace {}: {error}", path.display());
        Refusal::new(FailureKind::Internal, message)
    })
}

fn namespace_of(pid: u32) -> Result<OwnedFd, Refusal> {
    open_namespace(Path::new(&format!("/proc/{pid}/ns/net")))
}

fn size(size: kata_spec::TerminalSize) -> TerminalSize {
    TerminalSize { rows: size.rows, columns: size.columns }
}

fn read_error(path: &Path, error: &dyn std::error::Error) -> Refusal {
    let message = format!("read {}: {}", path.display(), chain(error));
    Refusal::new(FailureKind::InvalidArgument, message)
}

fn invalid(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(FailureKind::InvalidArgument, chain(error))
}

fn program_error(error: &kata_spec::ProgramError) -> Refusal {
    let kind = match error.exit_code() {
        127 => FailureKind::CommandNotFound,
        _ => FailureKind::CommandNotExecutable,
    };
    Refusal::new(kind, chain(error))
}
