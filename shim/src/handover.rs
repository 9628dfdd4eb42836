//! `handover.sock`: requests that come with descriptors, one a connection.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kata_engine_api::handover::{Answer, Confirmed, Create, Exec, FailureKind, Further, Request};
use kata_sandbox::{
    layers::Layers,
    network::Namespace,
    packet::{PacketError, PacketSocket},
};
use kata_spec::{Trees, check};
use kata_sys::{causes::chain, watch::watch};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;

use crate::{
    container::{Container, Role},
    engine::stdio::Names,
    failure::Refusal,
    monitor::Monitor,
    service::{Creation, Service, network_path},
};

/// Between two attempts to accept when descriptors have run out.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest configuration that is read.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// Serves connections until the socket fails.
pub async fn serve(service: Arc<Service>, listener: OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)?;
    let listener = watch(listener, Interest::READABLE)?;
    loop {
        let accepted = listener
            .async_io(Interest::READABLE, |fd| {
                Ok(accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
            })
            .await;
        let connection = match accepted {
            Ok(connection) => connection,
            // Its peer has left, or descriptors ran out: the next one may do better.
            Err(error) => {
                tracing::warn!(%error, "accept on handover.sock");
                // No event tells that descriptors are to be had again.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(&service, connection).await {
                tracing::warn!(%error, "handover");
            }
        });
    }
}

async fn answer(service: &Arc<Service>, connection: OwnedFd) -> Result<(), PacketError> {
    let connection = PacketSocket::new(connection)?;
    let Some((request, mut fds)) = connection.receive::<Request>().await? else { return Ok(()) };
    if let Request::Create(Create { further_packets, .. }) = &request {
        for _ in 0..*further_packets {
            let Some((Further {}, more)) = connection.receive().await? else { return Ok(()) };
            fds.extend(more);
        }
    }
    match request {
        Request::Exec(exec) => {
            tokio::select! {
                () = until_it_may_start(service, &exec) => {}
                // Whoever has gone wants nothing started any more.
                _ = connection.receive::<Confirmed>() => return Ok(()),
            }
            tell(&connection, take_exec(service, &exec, fds).await).await
        }
        Request::Create(create) => match take_create(service, &create, fds).await {
            Ok(container) => {
                tokio::spawn(service.clone().outlive(container.clone()));
                let told = tell(&connection, Ok(())).await;
                if told.is_err() || !is_confirmed(&connection).await {
                    service.take_back(&container).await;
                }
                told
            }
            Err(refusal) => tell(&connection, Err(refusal)).await,
        },
    }
}

/// Waits until the caller says that somebody knows of its container, or has gone.
async fn is_confirmed(connection: &PacketSocket) -> bool {
    matches!(connection.receive::<Confirmed>().await, Ok(Some(_)))
}

async fn tell(connection: &PacketSocket, done: Result<(), Refusal>) -> Result<(), PacketError> {
    let answer = match done {
        Ok(()) => Answer::Ok {},
        Err(refusal) => {
            tracing::info!(message = refusal.message, "request refused");
            Answer::Error(refusal.into())
        }
    };
    connection.send(&answer, &[]).await
}

async fn take_create(
    service: &Service,
    create: &Create,
    fds: Vec<OwnedFd>,
) -> Result<Arc<Container>, Refusal> {
    let invalid = |message: String| Refusal::new(FailureKind::InvalidArgument, message);
    let mut fds = Descriptors(fds.into_iter());
    let control = fds.next("the monitor's control socket")?;
    let config = read_json(fds.next("config.json")?)?;
    let root = fds.next("the root file system")?;
    let network = match create.network_namespace {
        true => Some(fds.next("the network namespace")?),
        false => None,
    };
    let volumes = (0..create.volumes).map(|_| fds.next("a volume")).collect::<Result<_, _>>()?;
    let value = serde_json::from_slice(&config).map_err(|e| invalid(e.to_string()))?;
    let spec = check(&value, create.bundle.as_ref()).map_err(|e| invalid(chain(&e)))?;
    if spec.volumes.len() != create.volumes {
        let (wanted, came) = (spec.volumes.len(), create.volumes);
        return Err(invalid(format!("config.json has {wanted} volumes, and {came} came")));
    }
    let path = network_path(&spec, create.monitor_pid);
    let creation = Creation {
        id: create.id.clone(),
        role: Role::Alone,
        network: network.map(|fd| Namespace { fd, path }),
        trees: Some(Trees { root, volumes }),
        layers: create.layers.as_ref().map(|layers| Layers {
            lower: layers.lower.iter().map(PathBuf::from).collect(),
            writable: PathBuf::from(&layers.writable),
        }),
        monitor: Monitor::new(control, create.monitor_pid)
            .map_err(|e| Refusal::internal(&e))?
            .on_callers_terminal(create.callers_terminal),
        terminal: spec.process.terminal.then_some(create.terminal_size),
        directory: service.directory_fd().clone(),
        shares_pids: false,
        shares_memory: false,
        names: Names::default(),
        spec,
    };
    service.create(creation).await
}

/// Waits while the container is paused, if that is asked for, and while it is being started.
async fn until_it_may_start(service: &Service, exec: &Exec) {
    let Ok(container) = service.container(&exec.container_id) else { return };
    if exec.ignore_paused {
        container.resumed().await;
    }
    container.is_started_or_not().await;
}

async fn take_exec(service: &Service, exec: &Exec, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    let mut fds = Descriptors(fds.into_iter());
    let control = fds.next("the monitor's control socket")?;
    let json = read_json(fds.next("the process")?)?;
    let process = kata_spec::parse_process(&json, "process")
        .map_err(|e| Refusal::new(FailureKind::InvalidArgument, chain(&e)))?;
    let monitor = Monitor::new(control, exec.monitor_pid).map_err(|e| Refusal::internal(&e))?;
    let monitor = monitor.on_callers_terminal(exec.callers_terminal);
    let terminal = process.terminal.then_some(exec.terminal_size);
    let container = service.container(&exec.container_id)?;
    let what = (process.guest_process(), Names::default());
    let process = container.add(&exec.exec_id, monitor, what, terminal).await?;
    let started = container.start_added(&process).await;
    match started {
        // Nobody else asks for it once it has ended.
        Ok(()) => drop(tokio::spawn(async move {
            process.wait().await;
            container.forget(&process).await;
        })),
        Err(_) => container.forget(&process).await,
    }
    started
}

/// The descriptors of a request, in their order.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn next(&mut self, what: &str) -> Result<OwnedFd, Refusal> {
        self.0.next().ok_or_else(|| {
            Refusal::new(
                FailureKind::InvalidArgument,
                format!("the descriptor of {what} is missing"),
            )
        })
    }
}

fn read_json(fd: OwnedFd) -> Result<Vec<u8>, Refusal> {
    let mut file = File::from(fd);
    let mut text = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| (&mut file).take(MAX_JSON + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_JSON => {
            Err(Refusal::new(FailureKind::InvalidArgument, "configuration is longer than 16 MiB"))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(Refusal::internal(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write,
        os::fd::{AsFd, OwnedFd},
        sync::Arc,
    };

    use kata_config::Loaded;
    use kata_engine_api::handover::{Create, FailureKind};
    use kata_sys::scm::packet_pair;

    use super::{Service, take_create};

    #[tokio::test]
    async fn volumes_are_those_of_the_spec() {
        let bundle = tempfile::tempdir().unwrap();
        let directory: OwnedFd = File::open(bundle.path()).unwrap().into();
        let mut config = tempfile::tempfile().unwrap();
        let spec = kata_spec::default_for("/", &["sh".into()], false);
        config.write_all(spec.to_string().as_bytes()).unwrap();
        let (control, _monitor) = packet_pair().unwrap();
        let mut fds = vec![control, config.into()];
        fds.extend([(); 2].map(|()| directory.as_fd().try_clone_to_owned().unwrap()));
        let create = Create {
            id: "c".into(),
            bundle: bundle.path().display().to_string(),
            monitor_pid: 1,
            network_namespace: false,
            volumes: 1,
            further_packets: 0,
            terminal_size: None,
            callers_terminal: false,
            layers: None,
        };
        let path = bundle.path().to_owned();
        let service = Service::new(path, Arc::new(directory), Ok(Loaded::default()));
        let Err(refusal) = take_create(&service, &create, fds).await else { panic!("it is made") };
        assert_eq!(refusal.kind, FailureKind::InvalidArgument);
        assert_eq!(refusal.message, "config.json has 0 volumes, and 1 came");
    }
}
