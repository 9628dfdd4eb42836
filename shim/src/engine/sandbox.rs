//! containerd's Sandbox service, version 1: what its `shim` controller calls for a pod, in place of a container that stands
//! for it ([0011](../../../docs/design/0011-sandbox-api.md)).
//!
//! ```text
//! CreateSandbox ─► container of the pod's, from CRI's configuration ── StartSandbox ─► VM runs ── StopSandbox ─► ended
//!                                                                    tasks of its containers │  ShutdownSandbox ─► gone
//! ```
//!
//! The pod is a container of role [`Role::Pod`] here too, which is never in the guest: there is one way to make a sandbox,
//! and one to end it. It is no task: nothing of it is published.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use kata_engine_api::{
    containerd::{
        pod::PodSandboxConfig,
        sandbox::{
            CreateSandboxRequest, CreateSandboxResponse, Metric, PingRequest, PingResponse,
            PlatformName, PlatformRequest, PlatformResponse, SandboxMetricsRequest,
            SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
            ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
            StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
            WaitSandboxResponse,
        },
        sandbox_ttrpc::Sandbox,
        task::CreateTaskRequest,
        timestamp::Timestamp,
    },
    handover::FailureKind,
    record::Status,
};
use protobuf::Message;
use ttrpc::r#async::TtrpcContext;

use super::{Engine, pod_config, view::Mounts};
use crate::{
    container::{Container, Role},
    failure::Refusal,
    process::SIGKILL,
    statistics::{Form, Statistics},
    task::whole,
};

/// Name of CRI's message about a pod; before the last slash may be a prefix.
const POD: &str = "runtime.v1.PodSandboxConfig";

/// The pod's files, in the directory of its sandbox.
const FILES: &str = "files";

/// The root of the container that stands for it, where nobody ever looks.
const ROOT: &str = "root";

/// The service on `shim.sock`, beside Task.
pub struct SandboxService {
    /// The door.
    pub engine: Arc<Engine>,
    /// When the sandbox was made.
    pub made_at: SystemTime,
}

impl Engine {
    fn pod(&self, id: &str) -> Result<Arc<Container>, Refusal> {
        let pod = self.service.container(id)?;
        match pod.role() {
            Role::Pod => Ok(pod),
            Role::Alone | Role::Member => Err(Refusal::not_found("it is no sandbox")),
        }
    }

    /// Makes the container that stands for a pod.
    async fn create_sandbox(&self, request: CreateSandboxRequest) -> Result<(), Refusal> {
        let config = pod_config_of(&request)?;
        let [files, root] = [FILES, ROOT].map(|name| self.service.directory().join(name));
        let place = (request.netns_path.as_str(), root.as_path());
        let spec = pod_config::specification(&request.sandbox_id, place, &config);
        let bundle = PathBuf::from(&request.bundle_path);
        let files = self.make_files(files).map_err(|e| Refusal::internal(&e))?;
        let write = move || {
            std::fs::create_dir_all(&root)?;
            std::fs::write(bundle.join("config.json"), spec.to_string())?;
            files.write(&config)
        };
        let written = self.view.run(Mounts::Engine, write).await;
        written.map_err(|e| Refusal::internal(&e))?.map_err(|e| Refusal::internal(&e))?;
        let create = CreateTaskRequest {
            id: request.sandbox_id,
            bundle: request.bundle_path,
            rootfs: request.rootfs,
            ..Default::default()
        };
        self.create(&create).await.map(drop)
    }

    /// Ends all containers, the one that stands for the pod last; those who may end by themselves have until `grace`. No
    /// guest can prevent it: what it does not end ends with its VM.
    async fn stop_sandbox(&self, pod: &Arc<Container>, grace: Duration) -> Result<(), Refusal> {
        let members = self.members();
        join_all(members.iter().map(|member| member.end_as_member(grace))).await;
        pod.signal(pod.init(), SIGKILL, true).await?;
        // For the rest only the host is waited for.
        for container in members.iter().chain([pod]) {
            container.init().wait().await;
        }
        Ok(())
    }

    /// Takes everything away, and the shim with it; what fails of it is left to `delete`.
    async fn shut_down_sandbox(&self, id: &str) -> Result<(), Refusal> {
        let done = match self.pod(id) {
            Ok(pod) => self.take_away(&pod).await,
            // The sandbox could not be made, or is gone already.
            Err(_) if self.service.containers().is_empty() => Ok(()),
            Err(refusal) => return Err(refusal),
        };
        self.service.finish();
        done
    }

    async fn take_away(&self, pod: &Arc<Container>) -> Result<(), Refusal> {
        self.stop_sandbox(pod, Duration::ZERO).await?;
        for container in self.members() {
            if let Err(refusal) = self.delete_if_there(&container).await {
                // What it leaves goes with the pod.
                tracing::warn!(message = refusal.message, "delete a container of the pod");
            }
        }
        self.delete_if_there(pod).await
    }

    /// Deletes a container, unless somebody else has done so meanwhile.
    async fn delete_if_there(&self, container: &Container) -> Result<(), Refusal> {
        match self.delete(container).await {
            Err(refusal) if refusal.kind == FailureKind::NotFound => Ok(()),
            deleted => deleted,
        }
    }

    fn members(&self) -> Vec<Arc<Container>> {
        let all = self.service.containers();
        all.into_iter().filter(|container| container.role() != Role::Pod).collect()
    }
}

fn pod_config_of(request: &CreateSandboxRequest) -> Result<PodSandboxConfig, Refusal> {
    let invalid = |message: String| Refusal::new(FailureKind::InvalidArgument, message);
    let kind = request.options.type_url.rsplit('/').next().unwrap_or_default();
    if kind != POD {
        return Err(invalid(format!("a sandbox is made of a {POD}, and not of {kind:?}")));
    }
    let mut config = PodSandboxConfig::parse_from_bytes(&request.options.value)
        .map_err(|e| invalid(format!("read the {POD}: {e}")))?;
    config.annotations.extend(request.annotations.clone());
    Ok(config)
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let engine = self.engine.clone();
        whole(async move { engine.create_sandbox(request).await }).await?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let pod = self.engine.pod(&request.sandbox_id)?;
        let pid = pod.init().monitor.pid;
        whole(async move { pod.start().await }).await?;
        let created_at = Some(Timestamp::from(self.made_at)).into();
        Ok(StartSandboxResponse { pid, created_at, ..Default::default() })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        // As Go names them.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = PlatformName {
            os: "linux".into(),
            architecture: architecture.into(),
            ..Default::default()
        };
        Ok(PlatformResponse { platform: Some(platform).into(), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let (engine, pod) = (self.engine.clone(), self.engine.pod(&request.sandbox_id)?);
        let grace = Duration::from_secs(request.timeout_secs.into());
        whole(async move { engine.stop_sandbox(&pod, grace).await }).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let ended = self.engine.pod(&request.sandbox_id)?.init().wait().await;
        Ok(WaitSandboxResponse {
            exit_status: ended.code.into(),
            exited_at: Some(Timestamp::from(ended.at())).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let pod = self.engine.pod(&request.sandbox_id)?;
        let record = pod.record();
        let ready = record.status == Status::Running;
        let info = match request.verbose {
            // Strings and numbers always are JSON.
            true => {
                [("info".to_owned(), serde_json::to_string(&record).unwrap_or_default())].into()
            }
            false => Default::default(),
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: pod.init().monitor.pid,
            state: if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.into(),
            info,
            created_at: Some(Timestamp::from(self.made_at)).into(),
            exited_at: pod.init().ended().map(|ended| Timestamp::from(ended.at())).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.engine.pod(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let engine = self.engine.clone();
        whole(async move { engine.shut_down_sandbox(&request.sandbox_id).await }).await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.engine.pod(&request.sandbox_id)?;
        let mut sum = Statistics::none();
        for container in self.engine.members() {
            // One that is being deleted hides no other.
            match container.statistics().await {
                Ok(statistics) => sum.add(&statistics),
                Err(refusal) => tracing::debug!(message = refusal.message, "statistics of one"),
            }
        }
        let data = sum.to_any(Form::of_host()).map_err(|e| Refusal::internal(&e))?;
        let metrics = Metric {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            id: request.sandbox_id,
            data: Some(data).into(),
            ..Default::default()
        };
        Ok(SandboxMetricsResponse { metrics: Some(metrics).into(), ..Default::default() })
    }
}
