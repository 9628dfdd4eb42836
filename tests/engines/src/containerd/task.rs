//! The client side of a shim's Task service, without an engine between.

use std::{fs, os::unix::net::UnixStream};

use kata_engine_api::containerd::{
    any::Any,
    task::{DeleteRequest, ExecProcessRequest, StartRequest, WaitRequest},
    task_ttrpc::TaskClient,
};
use rustix::process::Pid;
use serde_json::json;
use ttrpc::{
    Code,
    asynchronous::{Client, transport::Socket},
    context,
};

use super::Containerd;

/// Nothing that is asked for takes longer, in nanoseconds.
const DEADLINE: i64 = 120_000_000_000;

/// A connection to a shim.
pub struct Task {
    runtime: tokio::runtime::Runtime,
    client: TaskClient,
}

impl Task {
    /// To the shim of a container of a pod.
    pub fn of(engine: &Containerd, container: &str) -> Self {
        let (runtime, client) = connect(engine, container);
        Self { runtime, client: TaskClient::new(client) }
    }

    /// Runs a program in a container to its end, with all its output thrown away at this end: what an engine's probe asks
    /// for. Returns the exit code.
    pub fn exec(&self, container: &str, exec: &str, program: &str) -> u32 {
        self.begin((container, exec), &[program], "file:///dev/null");
        self.end(container, exec)
    }

    /// Starts a program in a container (its id, and one for the process); its output goes to `stdout`. Returns its pid
    /// on the host.
    pub fn begin(&self, (container, exec): (&str, &str), words: &[&str], stdout: &str) -> Pid {
        self.add((container, exec), words, stdout);
        let start =
            StartRequest { id: container.into(), exec_id: exec.into(), ..Default::default() };
        let started = self.runtime.block_on(self.client.start(deadline(), &start)).unwrap();
        Pid::from_raw(started.pid.try_into().unwrap()).unwrap()
    }

    /// Makes one that is not started yet.
    pub fn add(&self, (container, exec): (&str, &str), words: &[&str], stdout: &str) {
        let process = json!({
            "args": words, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
            "noNewPrivileges": false,
        });
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: container.into(),
            exec_id: exec.into(),
            stdout: stdout.into(),
            stderr: "/dev/null".into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.runtime.block_on(self.client.exec(deadline(), &request)).unwrap();
    }

    /// What the shim answers to a call, or the code of its refusal.
    ///
    /// # Errors
    /// The code.
    pub fn ask<T>(
        &self,
        call: impl AsyncFnOnce(&TaskClient) -> ttrpc::Result<T>,
    ) -> Result<T, Code> {
        self.runtime.block_on(call(&self.client)).map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => status.code(),
            other => panic!("no answer: {other}"),
        })
    }

    /// Takes a process away; returns the exit code that is told then.
    pub fn delete(&self, container: &str, exec: &str) -> u32 {
        let (id, exec_id) = (container.to_owned(), exec.to_owned());
        let delete = DeleteRequest { id, exec_id, ..Default::default() };
        self.runtime.block_on(self.client.delete(deadline(), &delete)).unwrap().exit_status
    }

    /// Waits for its end; returns its exit code.
    pub fn wait(&self, container: &str, exec: &str) -> u32 {
        let (id, exec_id) = (container.to_owned(), exec.to_owned());
        let wait = WaitRequest { id, exec_id, ..Default::default() };
        self.runtime.block_on(self.client.wait(deadline(), &wait)).unwrap().exit_status
    }

    /// Waits for its end and takes it away; returns its exit code.
    pub fn end(&self, container: &str, exec: &str) -> u32 {
        let code = self.wait(container, exec);
        self.delete(container, exec);
        code
    }
}

/// To the shim of a container, or of a pod, that an engine has started.
pub(super) fn connect(engine: &Containerd, id: &str) -> (tokio::runtime::Runtime, Client) {
    let bundles = ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"];
    let address = |bundle| engine.file(&format!("state/{bundle}/k8s.io/{id}/address"));
    let address = bundles.map(address).into_iter().find_map(|path| fs::read_to_string(path).ok());
    let address = address.unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = UnixStream::connect(address.trim_start_matches("unix://")).unwrap();
    stream.set_nonblocking(true).unwrap();
    let guard = runtime.enter();
    let client = Client::new(Socket::try_from(stream).unwrap());
    drop(guard);
    (runtime, client)
}

/// How long an answer may take.
pub fn deadline() -> context::Context {
    context::with_timeout(DEADLINE)
}
