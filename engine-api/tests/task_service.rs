//! The generated Task service, over a real socket, and containerd's wire names.

use std::{os::fd::AsFd, sync::Arc};

use async_trait::async_trait;
use kata_engine_api::{
    containerd::{
        process::Status,
        task::{StateRequest, StateResponse},
        task_ttrpc::{Task, TaskClient, create_task},
    },
    dial::{SHIM_SOCKET, bind_stream, connect_stream},
};
use protobuf::{EnumOrUnknown, Message};
use ttrpc::r#async::{
    Client, Server, TtrpcContext,
    transport::{Listener, Socket},
};

struct OneTask;

#[async_trait]
impl Task for OneTask {
    async fn state(
        &self,
        _context: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let status = EnumOrUnknown::new(Status::RUNNING);
        Ok(StateResponse { id: request.id, pid: 7, status, ..Default::default() })
    }
}

#[tokio::test]
async fn a_client_reaches_the_service_through_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let dir = std::fs::File::open(root.path()).unwrap();
    let listener = bind_stream(dir.as_fd(), SHIM_SOCKET).unwrap();
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).unwrap())
        .register_service(create_task(Arc::new(OneTask)));
    server.start().await.unwrap();

    let socket = connect_stream(dir.as_fd(), SHIM_SOCKET).unwrap();
    let client = TaskClient::new(Client::new(Socket::try_from(socket).unwrap()));
    let request = StateRequest { id: "c1".into(), ..Default::default() };
    let state = client.state(ttrpc::context::with_timeout(0), &request).await.unwrap();
    assert_eq!((state.id.as_str(), state.pid, state.status.unwrap()), ("c1", 7, Status::RUNNING));

    let refused = client.pids(ttrpc::context::with_timeout(0), &Default::default()).await;
    assert!(matches!(refused, Err(ttrpc::Error::RpcStatus(_))), "{refused:?}");
    server.shutdown().await.unwrap();
}

#[test]
fn the_service_has_containerd_s_name() {
    let services: Vec<String> = create_task(Arc::new(OneTask)).into_keys().collect();
    assert_eq!(services, ["containerd.task.v2.Task"]);
}

/// Bytes as containerd would send them: field 1 `id`, field 3 `pid`, field 4 `status`, field 8 `terminal`.
#[test]
fn a_state_has_containerd_s_field_numbers() {
    let bytes = [0x0a, 0x01, b'c', 0x18, 0x07, 0x20, 0x03, 0x40, 0x01];
    let state = StateResponse::parse_from_bytes(&bytes).unwrap();
    assert_eq!((state.id.as_str(), state.pid, state.terminal), ("c", 7, true));
    assert_eq!(state.status.unwrap(), Status::STOPPED);
}
