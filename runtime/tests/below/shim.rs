//! A shim without a VM. A container of `exit N` ends when it is started, one of `wait` when it is signalled; the file
//! `mood` in the prefix makes it refuse, die, or wait until it is in another mood.

use std::{
    env, fs,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use kata_engine_api::{
    containerd::{
        any::Any,
        empty::Empty,
        task,
        task_ttrpc::{Task, create_task},
    },
    control::{End, ToMonitor, ToShim},
    dial::accept,
    handover::{Answer, Failure, FailureKind, Request},
    record::{Cause, Record, Status},
};
use kata_sys::{inherit, scm};
use tokio::sync::watch;
use ttrpc::r#async::{Server, TtrpcContext, transport::Listener};

struct Sandbox {
    directory: PathBuf,
    container: Mutex<Option<Container>>,
    ended: watch::Sender<Option<u8>>,
    deleted: watch::Sender<bool>,
}

struct Container {
    control: OwnedFd,
    arguments: Vec<String>,
    record: Record,
}

pub fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match words[0].as_str() {
        "serve" => serve(),
        "offline" => {
            if words[1] == "delete" {
                fs::remove_dir_all(&words[3]).unwrap();
            } else if words[1] == "state" {
                // What is there has a shim that lives: nobody may ask.
                std::process::exit(3);
            }
        }
        other => panic!("{other}"),
    }
    ExitCode::SUCCESS
}

fn serve() {
    let listener = UnixListener::from(inherit::take(3).unwrap());
    let handover = inherit::take(4).unwrap();
    let directory = inherit::take(5).unwrap();
    let directory = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).unwrap();
    let sandbox = Arc::new(Sandbox {
        directory,
        container: Mutex::default(),
        ended: watch::channel(None).0,
        deleted: watch::channel(false).0,
    });
    let theirs = sandbox.clone();
    thread::spawn(move || {
        loop {
            theirs.hand_over(&accept(&handover).unwrap());
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut server = Server::new()
            .add_listener(Listener::try_from(listener).unwrap())
            .register_service(create_task(Arc::new(Service(sandbox.clone()))));
        server.start().await.unwrap();
        sandbox.deleted.subscribe().wait_for(|deleted| *deleted).await.unwrap();
        server.shutdown().await.unwrap();
    });
}

impl Sandbox {
    fn hand_over(self: &Arc<Self>, connection: &OwnedFd) {
        let mut packet = scm::receive(connection).unwrap();
        let request = serde_json::from_slice(&packet.bytes).unwrap();
        let Request::Create(create) = request else { panic!("{request:?}") };
        // Control, config, root, network: the spec has no volumes.
        assert_eq!((packet.fds.len(), create.network_namespace), (4, true));
        let prefix = env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        let mood = || fs::read_to_string(prefix.join("mood")).unwrap_or_default();
        while mood() == "waits" {
            thread::sleep(Duration::from_millis(10));
        }
        let answer = match mood().as_str() {
            "dies" => std::process::exit(3),
            "refuses" => Answer::Error(Failure {
                kind: FailureKind::CommandNotExecutable,
                message: "exec: \"x\": permission denied".to_owned(),
            }),
            _ => Answer::Ok {},
        };
        let mut config = String::new();
        fs::File::from(packet.fds.remove(1)).read_to_string(&mut config).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let arguments = serde_json::from_value(config["process"]["args"].clone()).unwrap();
        let control = packet.fds.remove(0);
        let sandbox = self.clone();
        let heard = control.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok(ToShim::Signal(signal)) =
                serde_json::from_slice(&scm::receive(&heard).unwrap().bytes)
            {
                sandbox.end(128 + u8::try_from(signal).unwrap());
            }
        });
        let record = Record {
            oci_version: "1.2.0".to_owned(),
            id: create.id,
            status: Status::Created,
            pid: create.monitor_pid,
            bundle: create.bundle,
            rootfs: String::new(),
            created: String::new(),
            owner_uid: 0,
            annotations: Default::default(),
            ended: None,
            shim_pid: std::process::id(),
            vmm_pid: None,
            proxy_pid: None,
            resources: Default::default(),
            sandbox: Default::default(),
        };
        *self.container.lock().unwrap() = Some(Container { control, arguments, record });
        self.record(Status::Created);
        scm::send(connection, &serde_json::to_vec(&answer).unwrap(), &[]).unwrap();
    }

    fn record(&self, status: Status) {
        let mut container = self.container.lock().unwrap();
        let record = &mut container.as_mut().unwrap().record;
        record.status = status;
        let text = serde_json::to_vec(record).unwrap();
        fs::write(self.directory.join("state.json.new"), text).unwrap();
        fs::rename(self.directory.join("state.json.new"), self.directory.join("state.json"))
            .unwrap();
    }

    fn end(&self, code: u8) {
        self.record(Status::Stopped);
        let end = End {
            code,
            cause: Cause::Exited,
            stdout_bytes: None,
            stderr_bytes: None,
            grace_ms: 2000,
        };
        let message = serde_json::to_vec(&ToMonitor::End(end)).unwrap();
        let container = self.container.lock().unwrap();
        scm::send(&container.as_ref().unwrap().control, &message, &[]).unwrap();
        self.ended.send_replace(Some(code));
    }
}

struct Service(Arc<Sandbox>);

#[async_trait]
impl Task for Service {
    async fn start(
        &self,
        _: &TtrpcContext,
        _: task::StartRequest,
    ) -> ttrpc::Result<task::StartResponse> {
        let arguments = self.0.container.lock().unwrap().as_ref().unwrap().arguments.clone();
        match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["/program", "exit", code] => self.0.end(code.parse().unwrap()),
            ["/program", "fail"] => {
                let message = "exec: \"late\": executable file not found in $PATH";
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::INTERNAL,
                    message,
                )));
            }
            _ => self.0.record(Status::Running),
        }
        Ok(task::StartResponse::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: task::KillRequest) -> ttrpc::Result<Empty> {
        if self.0.ended.borrow().is_some() {
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "container not running");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        self.0.end(128 + u8::try_from(request.signal).unwrap());
        Ok(Empty::new())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        _: task::ConnectRequest,
    ) -> ttrpc::Result<task::ConnectResponse> {
        let container = self.0.container.lock().unwrap();
        let Some(Container { record, .. }) = container.as_ref() else {
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no container");
            return Err(ttrpc::Error::RpcStatus(status));
        };
        let (shim_pid, task_pid) = (record.shim_pid, record.pid);
        Ok(task::ConnectResponse { shim_pid, task_pid, ..Default::default() })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        _: task::StatsRequest,
    ) -> ttrpc::Result<task::StatsResponse> {
        let nothing = Any { type_url: "cgroups.v2.Metrics".to_owned(), ..Default::default() };
        Ok(task::StatsResponse { stats: Some(nothing).into(), ..Default::default() })
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        _: task::WaitRequest,
    ) -> ttrpc::Result<task::WaitResponse> {
        self.0.ended.subscribe().wait_for(Option::is_some).await.unwrap();
        Ok(task::WaitResponse::new())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        _: task::DeleteRequest,
    ) -> ttrpc::Result<task::DeleteResponse> {
        if self.0.ended.borrow().is_none() {
            let status = ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, "it runs");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        fs::remove_dir_all(&self.0.directory).unwrap();
        self.0.deleted.send_replace(true);
        Ok(task::DeleteResponse::new())
    }
}
