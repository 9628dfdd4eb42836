//! The client side of a shim's Task service, without an engine between.

use std::{fs, os::unix::net::UnixStream, path::Path};

use kata_engine_api::containerd::{
    any::Any,
    task::{DeleteRequest, ExecProcessRequest, StartRequest, WaitRequest},
    task_ttrpc::TaskClient,
};
use serde_json::json;
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context,
};

/// Nothing that is asked for takes longer, in nanoseconds.
const DEADLINE: i64 = 120_000_000_000;

/// A connection to a shim.
pub struct Task {
    runtime: tokio::runtime::Runtime,
    client: TaskClient,
}

impl Task {
    /// To the shim of a container with this bundle.
    pub fn of(bundle: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = fs::read_to_string(bundle.join("address")).unwrap();
        let stream = UnixStream::connect(address.trim_start_matches("unix://")).unwrap();
        stream.set_nonblocking(true).unwrap();
        let guard = runtime.enter();
        let client = TaskClient::new(Client::new(Socket::try_from(stream).unwrap()));
        drop(guard);
        Self { runtime, client }
    }

    /// Runs a program in a container to its end, with all its output thrown away at this end: what an engine's probe asks
    /// for. Returns the exit code.
    pub fn exec(&self, container: &str, exec: &str, program: &str) -> u32 {
        self.runtime.block_on(self.run(container, exec, program))
    }

    async fn run(&self, container: &str, exec: &str, program: &str) -> u32 {
        let (id, exec_id) = (container.to_owned(), exec.to_owned());
        let process = json!({
            "args": [program], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
            "noNewPrivileges": false,
        });
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let nowhere = "file:///dev/null".to_owned();
        let request = ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            stdout: nowhere.clone(),
            stderr: nowhere,
            spec: Some(spec).into(),
            ..Default::default()
        };
        let deadline = || context::with_timeout(DEADLINE);
        self.client.exec(deadline(), &request).await.unwrap();
        let start = StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        self.client.start(deadline(), &start).await.unwrap();
        let wait = WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let ended = self.client.wait(deadline(), &wait).await.unwrap();
        let delete = DeleteRequest { id, exec_id, ..Default::default() };
        self.client.delete(deadline(), &delete).await.unwrap();
        ended.exit_status
    }
}
