//! containerd's Task service (v2), as far as one lone container needs it.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use kata_engine_api::{
    containerd::{
        any::Any,
        empty::Empty,
        process::{ProcessInfo, Status as TaskStatus},
        task,
        task_ttrpc::Task,
        timestamp::Timestamp,
    },
    handover::TerminalSize,
    record::{Record, Status},
};
use ttrpc::r#async::TtrpcContext;

use crate::{failure::Refusal, service::Service};

/// Linux has no more processes in a pid namespace by default; a guest that lists more is lying.
const MAX_PIDS: usize = 32_768;

/// Runs to its end what must not stop half way: ttrpc drops a handler whose caller is gone.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work).await;
    Ok(done.map_err(|e| Refusal::internal(&e))??)
}

/// The service on `shim.sock`.
pub struct TaskService(pub Arc<Service>);

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: task::StateRequest,
    ) -> ttrpc::Result<task::StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let record = container.record();
        let ended = process.ended();
        let status = match (&ended, record.status) {
            (Some(_), _) | (_, Status::Stopped) => TaskStatus::STOPPED,
            (None, Status::Creating | Status::Created) => TaskStatus::CREATED,
            (None, Status::Running) => TaskStatus::RUNNING,
            (None, Status::Paused) => TaskStatus::PAUSED,
        };
        Ok(task::StateResponse {
            id: request.id,
            bundle: record.bundle,
            pid: process.monitor.pid,
            status: status.into(),
            terminal: process.terminal,
            exit_status: ended.as_ref().map_or(0, |ended| ended.code.into()),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: task::StartRequest,
    ) -> ttrpc::Result<task::StartResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if process.is_init() {
            whole(async move { container.start().await }).await?;
        }
        Ok(task::StartResponse { pid: process.monitor.pid, ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: task::KillRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        whole(async move { container.signal(&process, request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: task::WaitRequest,
    ) -> ttrpc::Result<task::WaitResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let ended = process.wait().await?;
        Ok(task::WaitResponse {
            exit_status: ended.code.into(),
            exited_at: Some(Timestamp::from(SystemTime::now())).into(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: task::DeleteRequest,
    ) -> ttrpc::Result<task::DeleteResponse> {
        let process = self.0.container(&request.id)?.process(&request.exec_id)?;
        let ended =
            process.ended().ok_or_else(|| Refusal::precondition("process has not ended"))?;
        if process.is_init() {
            let service = self.0.clone();
            whole(async move { service.delete(&request.id).await }).await?;
        }
        Ok(task::DeleteResponse {
            pid: process.monitor.pid,
            exit_status: ended.code.into(),
            exited_at: Some(Timestamp::from(SystemTime::now())).into(),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: task::PidsRequest,
    ) -> ttrpc::Result<task::PidsResponse> {
        let container = self.0.container(&request.id)?;
        let mut pids = Vec::new();
        let Record { pid, status, .. } = container.record();
        if status == Status::Created {
            // As with runc, whose own init is there by then.
            pids.push(ProcessInfo { pid, ..Default::default() });
            return Ok(task::PidsResponse { processes: pids, ..Default::default() });
        }
        for guest_pid in container.guest_pids().await?.into_iter().take(MAX_PIDS) {
            let info = Any {
                type_url: "io.katacontainers.guest_pid".into(),
                value: guest_pid.to_string().into_bytes(),
                ..Default::default()
            };
            pids.push(ProcessInfo { pid, info: Some(info).into(), ..Default::default() });
        }
        Ok(task::PidsResponse { processes: pids, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: task::PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        whole(async move { container.set_paused(true).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: task::ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        whole(async move { container.set_paused(false).await }).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: task::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = TerminalSize { rows: clamp(request.height), columns: clamp(request.width) };
        container.resize(&process, size).await?;
        Ok(Empty::new())
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: task::ConnectRequest,
    ) -> ttrpc::Result<task::ConnectResponse> {
        let container = self.0.container(&request.id)?;
        Ok(task::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.record().pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: task::ShutdownRequest) -> ttrpc::Result<Empty> {
        // The shim ends with the deletion of its container, and not before; without one it has no reason to stay.
        if !self.0.has_container() {
            self.0.finish();
        }
        Ok(Empty::new())
    }
}
