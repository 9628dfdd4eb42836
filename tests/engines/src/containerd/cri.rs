//! The client side of CRI.

use std::path::PathBuf;

use protobuf::Message;

use super::{
    grpc::{self, Status},
    runtime,
};

/// A connection to an engine's CRI.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// Calls with their messages.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $method:literal, $request:ident => $answer:ident;)+) => {
        impl Cri {
            $(
                $(#[$doc])*
                pub fn $name(&self, request: &runtime::$request) -> Result<runtime::$answer, Status> {
                    self.call($method, request)
                }
            )+
        }
    };
}

impl Cri {
    /// Of an engine with this socket.
    pub fn new(socket: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { socket, runtime }
    }

    fn call<A: Message>(&self, method: &str, request: &impl Message) -> Result<A, Status> {
        let method = format!("/runtime.v1.RuntimeService/{method}");
        self.runtime.block_on(grpc::call(&self.socket, &method, request))
    }
}

calls! {
    /// Who answers.
    version: "Version", VersionRequest => VersionResponse;
    /// Whether runtime and network are ready.
    status: "Status", StatusRequest => StatusResponse;
    /// Makes and starts a sandbox.
    run_pod_sandbox: "RunPodSandbox", RunPodSandboxRequest => RunPodSandboxResponse;
    /// Stops it, and all containers in it.
    stop_pod_sandbox: "StopPodSandbox", StopPodSandboxRequest => StopPodSandboxResponse;
    /// Removes it, and all containers in it.
    remove_pod_sandbox: "RemovePodSandbox", RemovePodSandboxRequest => RemovePodSandboxResponse;
    /// How it is.
    pod_sandbox_status: "PodSandboxStatus", PodSandboxStatusRequest => PodSandboxStatusResponse;
    /// All that there are.
    list_pod_sandbox: "ListPodSandbox", ListPodSandboxRequest => ListPodSandboxResponse;
    /// Makes a container.
    create_container: "CreateContainer", CreateContainerRequest => CreateContainerResponse;
    /// Starts it.
    start_container: "StartContainer", StartContainerRequest => StartContainerResponse;
    /// Stops it.
    stop_container: "StopContainer", StopContainerRequest => StopContainerResponse;
    /// Removes it.
    remove_container: "RemoveContainer", RemoveContainerRequest => RemoveContainerResponse;
    /// How it is.
    container_status: "ContainerStatus", ContainerStatusRequest => ContainerStatusResponse;
    /// Changes its limits.
    update_container_resources: "UpdateContainerResources",
        UpdateContainerResourcesRequest => UpdateContainerResourcesResponse;
    /// Runs a command to its end.
    exec_sync: "ExecSync", ExecSyncRequest => ExecSyncResponse;
    /// Where a command can be run with streams.
    exec: "Exec", ExecRequest => ExecResponse;
    /// Where a container's streams are.
    attach: "Attach", AttachRequest => AttachResponse;
    /// Where ports are forwarded.
    port_forward: "PortForward", PortForwardRequest => PortForwardResponse;
    /// Goes on with a new log file.
    reopen_container_log: "ReopenContainerLog",
        ReopenContainerLogRequest => ReopenContainerLogResponse;
    /// What all of it uses.
    pod_sandbox_stats: "PodSandboxStats", PodSandboxStatsRequest => PodSandboxStatsResponse;
    /// All containers that a filter lets through.
    list_containers: "ListContainers", ListContainersRequest => ListContainersResponse;
    /// What they use.
    list_container_stats: "ListContainerStats",
        ListContainerStatsRequest => ListContainerStatsResponse;
    /// What it uses.
    container_stats: "ContainerStats", ContainerStatsRequest => ContainerStatsResponse;
}
