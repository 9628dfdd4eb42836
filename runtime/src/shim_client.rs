//! Calls of containerd's Task service on the socket of one sandbox.

use std::{future::Future, io, os::fd::AsFd, time::Duration};

use kata_engine_api::{
    containerd::{
        any::Any,
        process::ProcessInfo,
        task::{
            ConnectRequest, DeleteRequest, KillRequest, PauseRequest, PidsRequest, ResumeRequest,
            ShutdownRequest, StartRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
            WaitResponse,
        },
        task_ttrpc::TaskClient,
    },
    dial::{SHIM_SOCKET, connect_stream},
    record::Ended,
};
use tokio::time::timeout;
use ttrpc::{
    r#async::{Client, transport::Socket},
    context::{Context, with_duration},
};

use crate::{
    failure::{Failure, from_guest, from_status},
    id::ContainerId,
    sandbox_dir::SandboxDir,
    signal::Signal,
};

/// The shim answers these from its own record, or after one message to the guest; a hung guest must not hang the caller.
const PROMPT: Duration = Duration::from_secs(10);

/// The shim gives a guest up sooner that does not freeze or thaw, and takes back what it asked for: its word is waited for.
const FREEZER: Duration = Duration::from_secs(60);

/// So long a shim that is well may take to answer, on a machine that is not.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// So long whoever only wants to know, or would kill it anyway, waits for it.
pub const IMPATIENCE: Duration = Duration::from_secs(2);

/// Start answers when the guest has booted, of which the shim knows the ceiling: this one is far beyond it.
const START: Duration = Duration::from_secs(900);

/// What containerd calls a change of resources.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A container may run for ever.
const UNBOUNDED: Duration = Duration::ZERO;

/// A connection to the shim of one container; lives inside a tokio runtime.
pub struct ShimClient {
    task: TaskClient,
    id: ContainerId,
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::host("prepare to wait for events"))?
        .block_on(future)
}

/// What has become of a container that was waited for.
pub enum Turn {
    /// It has ended; how, when its shim is of this version.
    Ended(Option<Ended>),
    /// So often the guest's OOM killer has struck it by now.
    OomKills(u64),
}

/// How a container ended; a shim of another version does not say.
fn how(answer: &WaitResponse) -> Option<Ended> {
    serde_json::from_slice(&answer.ended).ok()
}

/// True when somebody has the shim's socket open, whether it answers or not.
pub fn is_there(dir: &SandboxDir) -> bool {
    match connect_stream(dir.as_fd(), SHIM_SOCKET) {
        Ok(_) => true,
        Err(error) => !is_gone(&error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl ShimClient {
    /// Connects; none when no shim lives.
    pub fn connect(dir: &SandboxDir, id: &ContainerId) -> Result<Option<Self>, Failure> {
        let failed = || Failure::host(format!("connect to the shim of {id}"));
        let stream = match connect_stream(dir.as_fd(), SHIM_SOCKET) {
            Ok(stream) => stream,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Failure::Unresponsive { id: id.to_string() });
            }
            Err(error) => return Err(failed()(error)),
        };
        let socket = Socket::try_from(stream).map_err(failed())?;
        Ok(Some(Self { task: TaskClient::new(Client::new(socket)), id: id.clone() }))
    }

    /// Connects to a shim that answers; none when it is gone, or about to go.
    pub async fn find(
        dir: &SandboxDir,
        id: &ContainerId,
        patience: Duration,
    ) -> Result<Option<Self>, Failure> {
        let Some(shim) = Self::connect(dir, id)? else { return Ok(None) };
        let request = ConnectRequest { id: shim.id(), ..Default::default() };
        match timeout(patience, shim.task.connect(context(UNBOUNDED), &request)).await {
            // A refusal is an answer, too.
            Ok(Ok(_) | Err(ttrpc::Error::RpcStatus(_))) => Ok(Some(shim)),
            Ok(Err(_)) => Ok(None),
            Err(_) => Err(Failure::Unresponsive { id: id.to_string() }),
        }
    }

    /// Starts the container's own process; answered when it runs.
    pub async fn start(&self) -> Result<(), Failure> {
        let request = StartRequest { id: self.id(), ..Default::default() };
        self.task
            .start(context(START), &request)
            .await
            .map(drop)
            .map_err(|e| from_status("start", e))
    }

    /// Sends a signal to the container's own process, or to all of its processes.
    pub async fn kill(&self, signal: Signal, all: bool) -> Result<(), Failure> {
        let signal = signal.number();
        self.send_kill(KillRequest { id: self.id(), signal, all, ..Default::default() }).await
    }

    /// Kills all of its processes, so that it can be deleted.
    pub async fn kill_for_delete(&self) -> Result<(), Failure> {
        let signal = Signal::KILL.number();
        let words = KillRequest { id: self.id(), signal, all: true, ..Default::default() };
        self.send_kill(KillRequest { for_delete: true, ..words }).await
    }

    async fn send_kill(&self, request: KillRequest) -> Result<(), Failure> {
        self.task
            .kill(context(PROMPT), &request)
            .await
            .map(drop)
            .map_err(|e| from_status("kill", e))
    }

    /// Returns once the container has ended, and how, when its shim is of this version.
    pub async fn wait(&self) -> Result<Option<Ended>, Failure> {
        Ok(how(&self.wait_until(0).await?))
    }

    /// Returns once the container has ended, or the guest's OOM killer has struck it more than `seen` times.
    pub async fn wait_beyond_oom_kills(&self, seen: u64) -> Result<Turn, Failure> {
        let answer = self.wait_until(seen.saturating_add(1)).await?;
        Ok(match answer.oom_kills {
            0 => Turn::Ended(how(&answer)),
            kills => Turn::OomKills(kills),
        })
    }

    /// For the end, or for so many strikes of the OOM killer; 0 is for the end alone.
    async fn wait_until(&self, until_oom_kills: u64) -> Result<WaitResponse, Failure> {
        let request = WaitRequest { id: self.id(), until_oom_kills, ..Default::default() };
        self.task.wait(context(UNBOUNDED), &request).await.map_err(|e| from_status("wait", e))
    }

    /// Forgets a container that has ended.
    pub async fn delete(&self) -> Result<(), Failure> {
        let request = DeleteRequest { id: self.id(), ..Default::default() };
        self.task
            .delete(context(PROMPT), &request)
            .await
            .map(drop)
            .map_err(|e| from_status("delete", e))
    }

    /// Ends the shim and with it the sandbox.
    pub async fn shut_down(&self) -> Result<(), Failure> {
        let request = ShutdownRequest { id: self.id(), now: true, ..Default::default() };
        self.task
            .shutdown(context(PROMPT), &request)
            .await
            .map(drop)
            .map_err(|e| from_status("shutdown", e))
    }

    /// Freezes all processes.
    pub async fn pause(&self) -> Result<(), Failure> {
        let request = PauseRequest { id: self.id(), ..Default::default() };
        self.task
            .pause(context(FREEZER), &request)
            .await
            .map(drop)
            .map_err(|e| from_guest("pause", e))
    }

    /// Lets frozen processes go on.
    pub async fn resume(&self) -> Result<(), Failure> {
        let request = ResumeRequest { id: self.id(), ..Default::default() };
        self.task
            .resume(context(FREEZER), &request)
            .await
            .map(drop)
            .map_err(|e| from_guest("resume", e))
    }

    /// The container's processes, as the host knows them.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, Failure> {
        let request = PidsRequest { id: self.id(), ..Default::default() };
        let answer = self.task.pids(context(PROMPT), &request).await;
        answer.map(|pids| pids.processes).map_err(|e| from_status("ps", e))
    }

    /// What the container uses, in the form of this host's engines.
    pub async fn statistics(&self) -> Result<Any, Failure> {
        let request = StatsRequest { id: self.id(), ..Default::default() };
        let answer = self.task.stats(context(PROMPT), &request).await;
        answer.map(|answer| answer.stats.unwrap_or_default()).map_err(|e| from_status("events", e))
    }

    /// Pid of the process that stands for the container.
    pub async fn pid(&self) -> Result<u32, Failure> {
        let request = ConnectRequest { id: self.id(), ..Default::default() };
        let answer = self.task.connect(context(PROMPT), &request).await;
        answer.map(|answer| answer.task_pid).map_err(|e| from_status("events", e))
    }

    /// Changes its limits; `resources` is `linux.resources` as JSON.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), Failure> {
        let resources =
            Any { type_url: RESOURCES.to_owned(), value: resources, ..Default::default() };
        let request = UpdateTaskRequest {
            id: self.id(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let answer = self.task.update(context(PROMPT), &request).await;
        answer.map(drop).map_err(|e| from_guest("update", e))
    }

    fn id(&self) -> String {
        self.id.to_string()
    }
}

fn context(deadline: Duration) -> Context {
    // Zero means none.
    with_duration(deadline)
}
