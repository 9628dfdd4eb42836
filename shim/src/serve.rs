//! Serves one sandbox: for the OCI command line, or for an engine.
//!
//! Inherited: fd 3 listens for ttrpc (`shim.sock`), fd 4 for handovers (`handover.sock`), fd 5 is the sandbox
//! directory; from an engine, fd 6 is its log. The process leaves the host's mount namespace before it has a second thread,
//! and stays in a session of its own until there is nothing left to serve.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use anyhow::{Context, anyhow};
use kata_config::{Loaded, LogLevel};
use kata_engine_api::{
    containerd::{sandbox_ttrpc::create_sandbox, task_ttrpc::create_task},
    record::LOG_FILE,
};
use kata_sys::{inherit, watch::watch};
use rustix::{
    fs::{Mode, OFlags, openat},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CpuSet, UnshareFlags, sched_setaffinity},
};
use tokio::{io::Interest, net::UnixListener};
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::{
    engine::{Engine, events::Publisher, place::Place, sandbox::SandboxService, view::HostView},
    handover::{self, ACCEPT_PAUSE},
    service::Service,
    task::TaskService,
};

/// Serves the command line until its container is deleted.
pub fn serve() -> anyhow::Result<()> {
    let inherited = Inherited::take()?;
    // Handed down, not looked up: a parent that has died by now would be another process.
    let creator = inherit::take(6).context("fd 6 should be the pidfd of the creator")?;
    inherit::close_rest().context("close what was inherited besides")?;
    let (sockets, service) = inherited.settle(None)?;
    runtime()?.block_on(async {
        let task = TaskService { service: service.clone(), engine: None };
        let given_up = abandoned(&service, creator);
        if run(&service, sockets, Arc::new(task), given_up).await? == Ended::Abandoned {
            service.give_up();
        }
        Ok(())
    })
}

/// Serves an engine until it says that nothing is left.
pub fn serve_engine(namespace: &str) -> anyhow::Result<()> {
    let inherited = Inherited::take()?;
    let log = inherit::take(6).context("fd 6 should be the engine's log")?;
    inherit::close_rest().context("close what was inherited besides")?;
    let view = HostView::take()?;
    let (sockets, service) = inherited.settle(Some(log))?;
    let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    runtime()?.block_on(async {
        let events = Publisher::start(address, namespace.to_owned(), view.clone());
        let engine = Engine::new(service.clone(), view, events)?;
        let task = TaskService { service: service.clone(), engine: Some(engine.clone()) };
        run(&service, sockets, Arc::new(task), std::future::pending()).await?;
        engine.events.finish().await;
        if !service.is_torn_down() {
            return Err(anyhow!("the sandbox is not torn down: its ledger is left to `delete`"));
        }
        engine.close().context("take the pod's files away")?;
        service.remove_directory().map_err(|refusal| anyhow!(refusal.message))?;
        Place::tidy_up();
        Ok(())
    })
}

/// The VMM and the proxy die with the thread that made them, so everything runs on this one, which never ends.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// What both kinds of callers hand down.
struct Inherited {
    sockets: Sockets,
    directory: OwnedFd,
}

struct Sockets {
    shim: OwnedFd,
    handover: OwnedFd,
}

impl Inherited {
    fn take() -> anyhow::Result<Self> {
        let shim = inherit::take(3).context("fd 3 should be the listening shim.sock")?;
        let handover = inherit::take(4).context("fd 4 should be the listening handover.sock")?;
        let directory = inherit::take(5).context("fd 5 should be the sandbox directory")?;
        Ok(Self { sockets: Sockets { shim, handover }, directory })
    }

    /// Begins the log, and leaves the host's mounts.
    fn settle(self, engine_log: Option<OwnedFd>) -> anyhow::Result<(Sockets, Arc<Service>)> {
        let directory = self.directory;
        let path: PathBuf = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .context("find the path of the sandbox directory")?;
        let loaded = Loaded::read(&kata_config::directory());
        let level =
            loaded.as_ref().map_or(LogLevel::Info, |loaded| loaded.config.runtime.log_level);
        log_to(&directory, engine_log, level)?;
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .context("raise the limit on descriptors")?;
        leave_callers_cpus();
        kata_sys::jail::leave_namespaces(UnshareFlags::NEWNS).context("leave the host's mounts")?;
        Ok((self.sockets, Service::new(path, Arc::new(directory), loaded)))
    }
}

/// Engines are held to processors of their own (systemd's `CPUAffinity=`), and what they start would be held there, too: the
/// VM, and how many processors it gets. Which ones a sandbox may use is said by its control group.
fn leave_callers_cpus() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    if let Err(error) = sched_setaffinity(None, &all) {
        tracing::warn!(%error, "the sandbox is held to the processors of its caller");
    }
}

/// Why serving is over.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Finished,
    Abandoned,
}

async fn run(
    service: &Arc<Service>,
    sockets: Sockets,
    task: Arc<TaskService>,
    given_up: impl Future<Output = ()>,
) -> anyhow::Result<Ended> {
    let listener = StdListener::from(sockets.shim);
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
    let sandbox = task
        .engine
        .clone()
        .map(|engine| Arc::new(SandboxService { engine, made_at: SystemTime::now() }));
    let mut server = Server::new()
        .add_listener(Listener::new(accepted))
        .register_service(create_task(task.clone()))
        .register_service(as_version_3(create_task(task)));
    if let Some(sandbox) = sandbox {
        server = server.register_service(create_sandbox(sandbox));
    }
    server.start().await.context("serve shim.sock")?;
    let handovers = handover::serve(service.clone(), sockets.handover);
    let ended = tokio::select! {
        served = handovers => served.context("serve handover.sock").map(|()| Ended::Finished)?,
        () = service.finished() => Ended::Finished,
        () = given_up => Ended::Abandoned,
    };
    server.shutdown().await.context("finish the last answers")?;
    Ok(ended)
}

/// Version 3 of the service differs from version 2 in nothing but its name.
fn as_version_3<T>(services: HashMap<String, T>) -> HashMap<String, T> {
    services.into_iter().map(|(name, service)| (name.replace(".v2.", ".v3."), service)).collect()
}

/// Returns when the process that started this one has died, and there is no container: then there never will be one.
async fn abandoned(service: &Service, creator: OwnedFd) {
    let gone = match watch(creator, Interest::READABLE) {
        Ok(creator) => creator.readable().await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = gone {
        tracing::warn!(%error, "watch the creator, which is taken to live");
        return std::future::pending().await;
    }
    if service.has_container() {
        // It may still be in the making.
        service.unmade().await;
    }
}

/// Everything that the shim and its children have to say goes to `shim.log`; an engine gets a copy.
fn log_to(directory: &OwnedFd, engine: Option<OwnedFd>, level: LogLevel) -> anyhow::Result<()> {
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
        // These would go to stderr, which is the same file: where there is no room for a line, none may end the shim.
        .log_internal_errors(false)
        .with_writer(Mutex::new(Log {
            own: log.into(),
            written: 0,
            engine: engine.map(File::from),
        }))
        .init();
    Ok(())
}

/// Bytes of one log; a sandbox that is well writes some hundred in its life.
const MOST_LOG: u64 = 2 * 1024 * 1024;

/// Where the log goes.
struct Log {
    own: File,
    /// Since it was last begun anew.
    written: u64,
    engine: Option<File>,
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(engine) = &mut self.engine {
            // A fifo that is full has no reader at the moment; our own log has it all.
            engine.write(bytes).ok();
        }
        if self.written > MOST_LOG {
            // What a guest can provoke for ever must not fill the host's memory, where this file is.
            self.own.set_len(0)?;
            self.own.write_all(b"(earlier lines were dropped: the log had reached its limit)\n")?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.own.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
