//! The client side of a shim's Sandbox service: what engines of today do not call, or only on other systems.

use kata_engine_api::containerd::{
    cgroups_v1, cgroups_v2,
    sandbox::{
        PingRequest, PlatformName, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
        SandboxStatusResponse,
    },
    sandbox_ttrpc::SandboxClient,
};
use protobuf::Message;

use super::{
    Containerd,
    task::{connect, deadline},
};

/// A connection to the shim of a pod.
pub struct Sandbox {
    runtime: tokio::runtime::Runtime,
    client: SandboxClient,
    id: String,
}

/// What a pod uses, as far as every version of control groups tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub memory: u64,
    /// Nanoseconds, whole microseconds of them with version 2.
    pub cpu: u64,
}

impl Sandbox {
    /// To that of a pod.
    pub fn of(engine: &Containerd, id: &str) -> Self {
        let (runtime, client) = connect(engine, id);
        Self { runtime, client: SandboxClient::new(client), id: id.to_owned() }
    }

    /// Asks whether it has a sandbox.
    ///
    /// # Errors
    /// What it says otherwise.
    pub fn ping(&self, id: &str) -> ttrpc::Result<()> {
        let request = PingRequest { sandbox_id: id.to_owned(), ..Default::default() };
        let answer = async { self.client.ping_sandbox(deadline(), &request).await };
        self.runtime.block_on(answer).map(drop)
    }

    /// What containers in it are to be made for.
    pub fn platform(&self) -> PlatformName {
        let request = PlatformRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = async { self.client.platform(deadline(), &request).await.unwrap() };
        self.runtime.block_on(answer).platform.unwrap()
    }

    /// How it is, all of it.
    pub fn status(&self) -> SandboxStatusResponse {
        let request = SandboxStatusRequest {
            sandbox_id: self.id.clone(),
            verbose: true,
            ..Default::default()
        };
        let answer = async { self.client.sandbox_status(deadline(), &request).await.unwrap() };
        self.runtime.block_on(answer)
    }

    /// What it uses.
    pub fn usage(&self) -> Usage {
        let request = SandboxMetricsRequest { sandbox_id: self.id.clone(), ..Default::default() };
        let answer = async { self.client.sandbox_metrics(deadline(), &request).await.unwrap() };
        let metrics = self.runtime.block_on(answer).metrics.unwrap();
        assert_eq!(metrics.id, self.id);
        assert!(metrics.timestamp.seconds > 0, "{metrics}");
        match metrics.data.type_url.as_str() {
            // An engine that finds another type takes none of its list.
            "io.containerd.cgroups.v1.Metrics" => {
                let all = cgroups_v1::Metrics::parse_from_bytes(&metrics.data.value).unwrap();
                Usage { memory: all.memory.usage.usage, cpu: all.cpu.usage.total }
            }
            "io.containerd.cgroups.v2.Metrics" => {
                let all = cgroups_v2::Metrics::parse_from_bytes(&metrics.data.value).unwrap();
                Usage { memory: all.memory.usage, cpu: all.cpu.usage_usec * 1000 }
            }
            other => panic!("{other}"),
        }
    }
}
