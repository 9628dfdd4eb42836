//! Serves one sandbox for the OCI command line.
//!
//! Inherited: fd 3 listens for ttrpc (`shim.sock`), fd 4 for handovers (`handover.sock`), fd 5 is the sandbox
//! directory. The process leaves the host's mount namespace before it has a second thread, and stays in a session of its
//! own until the container is deleted.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use kata_config::{Loaded, LogLevel};
use kata_engine_api::{containerd::task_ttrpc::create_task, record::LOG_FILE};
use kata_sys::{inherit, watch::watch};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{MountPropagationFlags, mount_change},
    process::{PidfdFlags, Resource, Rlimit, getppid, getrlimit, pidfd_open, setrlimit},
    thread::UnshareFlags,
};
use tokio::{io::Interest, net::UnixListener};
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::{
    handover::{self, ACCEPT_PAUSE},
    service::Service,
    task::TaskService,
};

/// Serves until the container is deleted.
pub fn serve() -> anyhow::Result<()> {
    let shim_socket = inherit::take(3).context("fd 3 should be the listening shim.sock")?;
    let handover_socket = inherit::take(4).context("fd 4 should be the listening handover.sock")?;
    let directory = inherit::take(5).context("fd 5 should be the sandbox directory")?;
    let creator = getppid().context("the process that started this one is gone")?;
    let creator = pidfd_open(creator, PidfdFlags::empty()).context("watch the creator")?;
    inherit::close_rest().context("close what was inherited besides")?;
    let path: PathBuf = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
        .context("find the path of the sandbox directory")?;
    let loaded = Loaded::read(&kata_config::directory());
    let level = loaded.as_ref().map_or(LogLevel::Info, |loaded| loaded.config.runtime.log_level);
    log_to(&directory, level)?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raise the limit on descriptors")?;
    kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).context("leave the host's mounts")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("follow the host's mounts")?;
    // The VMM and the proxy die with the thread that made them, so everything runs on this one, which never ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let service = Service::new(path, Arc::new(directory), loaded);
    runtime.block_on(run(service, shim_socket, handover_socket, creator))
}

async fn run(
    service: Arc<Service>,
    shim_socket: OwnedFd,
    handover_socket: OwnedFd,
    creator: OwnedFd,
) -> anyhow::Result<()> {
    let listener = StdListener::from(shim_socket);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let accepted = futures_util::stream::unfold(listener, async |listener| {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok::<_, io::Error>(stream), listener)),
                // Its peer has left, or descriptors ran out: the next one may do better.
                Err(error) => {
                    tracing::warn!(%error, "accept on shim.sock");
                    // No event tells that descriptors are to be had again.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    let mut server = Server::new()
        .add_listener(Listener::new(accepted))
        .register_service(create_task(Arc::new(TaskService(service.clone()))));
    server.start().await.context("serve shim.sock")?;
    let handovers = handover::serve(service.clone(), handover_socket);
    tokio::select! {
        served = handovers => served.context("serve handover.sock")?,
        () = service.finished() => {}
        () = abandoned(&service, creator) => service.give_up(),
    }
    server.shutdown().await.context("finish the last answers")?;
    Ok(())
}

/// Returns when the process that started this one has died before it created a container: then nobody ever will.
async fn abandoned(service: &Service, creator: OwnedFd) {
    match watch(creator, Interest::READABLE) {
        Ok(creator) => {
            if let Err(error) = creator.readable().await {
                tracing::warn!(%error, "watch the creator");
            }
        }
        Err(error) => tracing::warn!(%error, "watch the creator"),
    }
    if service.has_container() {
        std::future::pending::<()>().await;
    }
}

/// Everything that the shim and its children have to say goes to `shim.log`.
fn log_to(directory: &OwnedFd, level: LogLevel) -> anyhow::Result<()> {
    let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
    let log =
        openat(directory, LOG_FILE, flags, Mode::RUSR | Mode::WUSR).context("open shim.log")?;
    rustix::stdio::dup2_stderr(&log).context("write errors to shim.log")?;
    let asked = std::env::var("KATA_LOG").ok();
    let level = asked.and_then(|asked| asked.parse().ok()).unwrap_or(match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    });
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(File::from(log))
        .init();
    Ok(())
}
