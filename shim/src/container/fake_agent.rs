//! An agent as tests want it, with one container that runs until it is killed.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use futures_util::stream;
use kata_protocol::{
    agent::{
        ContainerRef, Empty, ProcessEnd, ProcessRef, RemoveVolumeRequest, SignalProcessRequest,
    },
    agent_ttrpc::{self, create_agent},
};
use kata_sandbox::{agent::Agent, step::Steps};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{net::UnixStream, sync::watch};
use ttrpc::{
    Code,
    r#async::{Server, TtrpcContext, transport::Listener},
    get_status,
};

use crate::{monitor::Monitor, process::Process};

/// The agent.
pub struct FakeAgent {
    /// What `start_container` answers; nothing when none.
    started: Option<ttrpc::Result<()>>,
    /// It does not answer to `delete_process`.
    silent: bool,
    killed: watch::Sender<bool>,
    /// Names of the calls that came.
    calls: Mutex<Vec<&'static str>>,
}

/// Whoever lets go of it hangs up.
pub struct Connected {
    pub agent: Agent,
    pub fake: Arc<FakeAgent>,
    _server: Server,
}

pub fn refusal(code: Code) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, "no"))
}

/// An init whose monitor says nothing.
pub fn init() -> Arc<Process> {
    process("")
}

/// A process whose monitor says nothing.
pub fn process(exec_id: &str) -> Arc<Process> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    Arc::new(Process::new("c", exec_id, Monitor::new(ours, 1).unwrap(), None))
}

impl FakeAgent {
    /// Connects to a new one, which answers so to `start_container`.
    pub async fn connected(started: Option<ttrpc::Result<()>>) -> Connected {
        Self::serve(started, false).await
    }

    /// The same of one that does not answer to `delete_process`.
    pub async fn silent() -> Connected {
        Self::serve(None, true).await
    }

    async fn serve(started: Option<ttrpc::Result<()>>, silent: bool) -> Connected {
        let killed = watch::Sender::new(false);
        let fake = Arc::new(Self { started, silent, killed, calls: Mutex::default() });
        let (near, far) = UnixStream::pair().unwrap();
        let once = stream::iter([Ok::<_, io::Error>(far)]);
        let mut server = Server::new()
            .add_listener(Listener::new(once))
            .register_service(create_agent(fake.clone()));
        server.start().await.unwrap();
        let agent = Agent::new(near, Arc::new(Steps::default()), watch::channel(None).1);
        Connected { agent, fake, _server: server }
    }

    pub fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    pub async fn killed(&self) {
        self.killed.subscribe().wait_for(|killed| *killed).await.unwrap();
    }

    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }
}

#[async_trait]
impl agent_ttrpc::Agent for FakeAgent {
    async fn start_container(&self, _: &TtrpcContext, _: ContainerRef) -> ttrpc::Result<Empty> {
        self.note("start_container");
        match &self.started {
            Some(answer) => answer.clone().map(|()| Empty::new()),
            None => pending().await,
        }
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        self.note("signal_process");
        self.killed.send_replace(request.signal == 9 && request.all);
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, _: ProcessRef) -> ttrpc::Result<ProcessEnd> {
        self.note("wait_process");
        self.killed().await;
        Ok(ProcessEnd { signal: 9, ..ProcessEnd::default() })
    }

    async fn delete_process(&self, _: &TtrpcContext, _: ProcessRef) -> ttrpc::Result<Empty> {
        self.note("delete_process");
        if self.silent {
            return pending().await;
        }
        if *self.killed.borrow() {
            Ok(Empty::new())
        } else {
            Err(refusal(Code::FAILED_PRECONDITION))
        }
    }

    async fn remove_volume(
        &self,
        _: &TtrpcContext,
        _: RemoveVolumeRequest,
    ) -> ttrpc::Result<Empty> {
        self.note("remove_volume");
        Ok(Empty::new())
    }
}
