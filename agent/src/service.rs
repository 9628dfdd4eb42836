//! The agent's API: requests come in over the one connection to the host, and its end is the end of the guest.

use std::{future::Future, io, sync::Arc};

use async_trait::async_trait;
use futures_util::stream;
use kata_protocol::{
    AGENT_PORT,
    agent::{
        AdjustClockRequest, AdjustClockResponse, AwaitCardRequest, AwaitCardResponse, ContainerRef,
        ContainerStatsResponse, CreateContainerRequest, DialLocalhostRequest, Empty,
        ExecProcessRequest, ListProcessesResponse, NetworkChange, NetworkChanged, OomCount,
        ProcessCreated, ProcessEnd, ProcessRef, RemoveVolumeRequest, ResizeTerminalRequest,
        ServeResolverRequest, SignalProcessRequest, StartSandboxRequest, StartSandboxResponse,
        UpdateContainerRequest, WaitOomRequest, WriteVolumeRequest,
    },
    agent_ttrpc::{Agent, create_agent},
    hello::{AgentHello, BootNonce},
};
use kata_sys::signal_number::SignalNumber;
use ttrpc::{
    Code,
    r#async::{Server, TtrpcContext, transport::Listener},
    get_status,
};

use crate::{
    cgroup::{Oom, processors},
    clock, copies,
    network::{Undone, arrival},
    order::{Failure, FailureKind, Step, TerminalSize},
    process::{End, Process},
    reaper::Exit,
    resolver,
    sandbox::{Sandbox, flush},
    socket::{self, Connection},
    spec::Resources,
    streams::{self, Wanted},
};

/// Dials the host, and serves it until it hangs up.
pub async fn serve(nonce: BootNonce) -> io::Result<()> {
    let service = Arc::new(Service::default());
    tokio::spawn(service.sandbox.makers.reaper.clone().run());
    let socket = socket::dial(AGENT_PORT).await?;
    socket::send_all(&socket, &AgentHello { nonce }.encode()).await?;
    let (connection, end) = Connection::new(socket);
    // The server wants a listener; this one has accepted its only connection, and waits for no other.
    let once = stream::iter([Ok::<_, io::Error>(connection)]);
    let mut server = Server::new()
        .add_listener(Listener::new(once))
        .register_service(create_agent(service.clone()));
    server.start().await.map_err(io::Error::other)?;
    // Its sender is gone with the connection: the same news.
    end.await.ok();
    Ok(())
}

#[derive(Default)]
struct Service {
    sandbox: Arc<Sandbox>,
}

type Answer<T> = ttrpc::Result<T>;

/// Runs to its end what must not stop half way, whatever deadline the host had for it.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(status),
        Err(error) => Err(ttrpc::Error::RpcStatus(get_status(Code::INTERNAL, error.to_string()))),
    }
}

fn status(failure: Failure) -> ttrpc::Error {
    let code = match failure.kind {
        FailureKind::NotFound => Code::NOT_FOUND,
        FailureKind::PermissionDenied => Code::PERMISSION_DENIED,
        FailureKind::Invalid => Code::INVALID_ARGUMENT,
        FailureKind::Exists => Code::ALREADY_EXISTS,
        FailureKind::State => Code::FAILED_PRECONDITION,
        FailureKind::Internal => Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(get_status(code, failure.message))
}

fn created(process: &Process) -> ProcessCreated {
    ProcessCreated { guest_pid: process.pid.unsigned_abs(), ..ProcessCreated::default() }
}

impl From<End> for Ended {
    fn from(end: End) -> Self {
        let (exit_code, signal) = match end.exit {
            Exit::Code(code) => (code, 0),
            Exit::Signal(signal) => (0, signal),
        };
        Self(ProcessEnd {
            exit_code,
            signal,
            oom_killed: end.oom == Some(Oom::Limit),
            guest_oom: end.oom == Some(Oom::Guest),
            ended_unix_ns: end.unix_ns,
            stdout_bytes: end.stdout_bytes,
            stderr_bytes: end.stderr_bytes,
            ..ProcessEnd::default()
        })
    }
}

/// The wire's form of an end.
struct Ended(ProcessEnd);

impl Service {
    fn find(&self, process: &ProcessRef) -> Answer<Arc<Process>> {
        self.sandbox.process(&process.container_id, &process.exec_id).map_err(status)
    }
}

#[async_trait]
impl Agent for Service {
    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        mut request: StartSandboxRequest,
    ) -> Answer<StartSandboxResponse> {
        let sandbox = self.sandbox.clone();
        let (first, left_out) = whole(async move {
            let left_out = sandbox.configure(&request)?;
            if let Some(token) = streams::token(&request.resolver_token)? {
                resolver::serve(token).await?;
            }
            let Some(first) = request.first_container.take() else { return Ok((None, left_out)) };
            let container = sandbox.create(first).await?;
            if request.start
                && let Err(failure) = container.start().await
            {
                sandbox.discard(&container).await;
                return Err(failure);
            }
            Ok((Some(created(container.init())), left_out))
        })
        .await?;
        Ok(StartSandboxResponse {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            first_container: first.into(),
            left_out,
            ..StartSandboxResponse::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Answer<ProcessCreated> {
        let sandbox = self.sandbox.clone();
        whole(async move { Ok(created(sandbox.create(request).await?.init())) }).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRef) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        whole(async move { container.start().await }).await?;
        Ok(Empty::default())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> Answer<ProcessCreated> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let sandbox = self.sandbox.clone();
        whole(async move {
            let wanted = Wanted::parse(&request.stdio)?;
            let ExecProcessRequest { exec_id, process, .. } = &request;
            let process = container.exec(exec_id, process, &wanted, &sandbox.makers).await?;
            Ok(created(&process))
        })
        .await
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Answer<Empty> {
        let signal = SignalNumber::parse(request.signal)
            .ok_or_else(|| status(Failure::invalid(format!("no signal {}", request.signal))))?;
        if request.all {
            let container = self.sandbox.container(&request.process.container_id);
            container.and_then(|container| container.signal_all(signal)).map_err(status)?;
        } else {
            let container = self.sandbox.container(&request.process.container_id);
            container
                .and_then(|container| container.signal(&request.process.exec_id, signal))
                .map_err(status)?;
        }
        Ok(Empty::default())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: ProcessRef) -> Answer<ProcessEnd> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let process = container.process(&request.exec_id).map_err(status)?;
        let end = process.wait().await;
        // Nobody asks for it again.
        container.forget_added(&request.exec_id, &process);
        let end = end.ok_or_else(|| status(Failure::invalid("the process is not watched")))?;
        Ok(Ended::from(end).0)
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Answer<Empty> {
        let characters = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size =
            TerminalSize { rows: characters(request.rows), columns: characters(request.columns) };
        self.find(&request.process)?.resize(size).map_err(status)?;
        Ok(Empty::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> Answer<ListProcessesResponse> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let processes = container.processes().await.map_err(status)?;
        Ok(ListProcessesResponse { processes, ..ListProcessesResponse::default() })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRef) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        container.pause().await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRef) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        container.resume().await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> Answer<Empty> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let resources: Resources = serde_json::from_slice(&request.resources)
            .map_err(|error| status(Failure::invalid(format!("resources: {error}"))))?;
        whole(async move {
            let up = tokio::task::spawn_blocking(move || processors::bring_up(request.vcpus)).await;
            up.map_err(io::Error::from).flatten().step(|| "bring processors up")?;
            container.update(resources).await
        })
        .await?;
        Ok(Empty::default())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRef,
    ) -> Answer<ContainerStatsResponse> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let files = container.statistics().map_err(status)?;
        Ok(ContainerStatsResponse { files, ..ContainerStatsResponse::default() })
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> Answer<OomCount> {
        let container = self.sandbox.container(&request.container_id).map_err(status)?;
        let kills = container.oom_kills_beyond(request.seen).await.map_err(status)?;
        Ok(OomCount { kills, ..OomCount::default() })
    }

    async fn delete_process(&self, _: &TtrpcContext, request: ProcessRef) -> Answer<Empty> {
        let sandbox = self.sandbox.clone();
        whole(async move { sandbox.delete(&request.container_id, &request.exec_id).await }).await?;
        Ok(Empty::default())
    }

    async fn update_network(
        &self,
        _: &TtrpcContext,
        request: NetworkChange,
    ) -> Answer<NetworkChanged> {
        let sandbox = self.sandbox.clone();
        whole(async move { sandbox.network().apply(&request).map(Undone::into_answer) }).await
    }

    async fn await_card(
        &self,
        _: &TtrpcContext,
        request: AwaitCardRequest,
    ) -> Answer<AwaitCardResponse> {
        let there = arrival::of(&request.card).await.map_err(status)?;
        Ok(AwaitCardResponse { there, ..AwaitCardResponse::default() })
    }

    async fn dial_localhost(
        &self,
        _: &TtrpcContext,
        request: DialLocalhostRequest,
    ) -> Answer<Empty> {
        let sandbox = self.sandbox.clone();
        whole(async move { sandbox.localhost.dial(&request).await }).await?;
        Ok(Empty::default())
    }

    async fn serve_resolver(
        &self,
        _: &TtrpcContext,
        request: ServeResolverRequest,
    ) -> Answer<Empty> {
        let token = streams::token(&request.token).map_err(status)?;
        let token = token.ok_or_else(|| status(Failure::invalid("a stream needs a token")))?;
        whole(resolver::serve(token)).await?;
        Ok(Empty::default())
    }

    async fn adjust_clock(
        &self,
        _: &TtrpcContext,
        request: AdjustClockRequest,
    ) -> Answer<AdjustClockResponse> {
        let unix_ns = clock::adjust(request.by_ns).step(|| "adjust the clock").map_err(status)?;
        Ok(AdjustClockResponse { unix_ns, ..Default::default() })
    }

    async fn write_volume(&self, _: &TtrpcContext, request: WriteVolumeRequest) -> Answer<Empty> {
        whole(async move { copies::write(&request) }).await?;
        Ok(Empty::default())
    }

    async fn remove_volume(&self, _: &TtrpcContext, request: RemoveVolumeRequest) -> Answer<Empty> {
        whole(async move { copies::remove(request.number) }).await?;
        Ok(Empty::default())
    }

    async fn drop_caches(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        // May take long: every cached entry is looked at.
        let dropped =
            tokio::task::spawn_blocking(|| std::fs::write("/proc/sys/vm/drop_caches", "2"));
        match dropped.await {
            Ok(result) => result.step(|| "drop caches").map_err(status)?,
            Err(error) => return Err(status(Failure::invalid(error.to_string()))),
        }
        Ok(Empty::default())
    }

    async fn hold_pids(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        let sandbox = self.sandbox.clone();
        whole(async move { sandbox.pids.hold().await }).await?;
        Ok(Empty::default())
    }

    async fn flush(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        whole(async move { flush().await }).await?;
        Ok(Empty::default())
    }

    /// The guest goes on until the host hangs up: output that it has written is still on its way.
    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        let sandbox = self.sandbox.clone();
        whole(async move { sandbox.quiesce().await }).await?;
        Ok(Empty::default())
    }
}
