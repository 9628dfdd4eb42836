//! containerd's Task service, of which versions 2 and 3 differ in nothing but the name.
//!
//! The command line uses it, too; what only an engine calls needs an [`Engine`].

use std::sync::Arc;

use async_trait::async_trait;
use kata_engine_api::{
    containerd::{
        any::Any,
        empty::Empty,
        process::{ProcessInfo, Status as TaskStatus},
        task,
        task_events::{TaskPaused, TaskResumed},
        task_ttrpc::Task,
        timestamp::Timestamp,
    },
    guest_process::GuestProcess,
    handover::{FailureKind, TerminalSize},
    record::{Ended, Status},
};
use protobuf::MessageFull;
use ttrpc::r#async::TtrpcContext;

use kata_protocol::agent;
use kata_sandbox::agent::presentable;

use crate::{
    container::Role,
    engine::Engine,
    failure::Refusal,
    process::{Phase, Process},
    service::Service,
    statistics::Form,
};

/// Linux has no more processes in a pid namespace by default; a guest that lists more is lying.
const MAX_PIDS: usize = 32_768;

fn exited_at(ended: &Ended) -> Timestamp {
    Timestamp::from(ended.at())
}

/// What a process is said to be. An exec ends by itself: that of its container comes before its own is known.
fn status_of(process: &Process, container: Status) -> TaskStatus {
    match (container, process.is_init()) {
        _ if process.ended().is_some() => TaskStatus::STOPPED,
        (Status::Creating | Status::Created, true) => TaskStatus::CREATED,
        (Status::Stopped, true) => TaskStatus::STOPPED,
        _ if process.phase() < Phase::Running => TaskStatus::CREATED,
        (Status::Paused, _) => TaskStatus::PAUSED,
        _ => TaskStatus::RUNNING,
    }
}

/// Runs to its end what must not stop half way: ttrpc drops a handler whose caller is gone.
pub async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work).await;
    Ok(done.map_err(|e| Refusal::internal(&e))??)
}

/// A process of the guest, as the host has it: the pid is that of the container's stand-in, the rest is in `info`.
fn listed(pid: u32, process: &agent::ProcessDetails) -> ProcessInfo {
    let process = GuestProcess {
        pid: process.guest_pid,
        parent: process.parent,
        uid: process.uid,
        cpu_ms: process.cpu_ms,
        age_ms: process.age_ms,
        terminal: process.terminal,
        command: presentable(&process.command),
    };
    let info = Any {
        type_url: GuestProcess::TYPE.into(),
        // Numbers and a string always are JSON.
        value: serde_json::to_vec(&process).unwrap_or_default(),
        ..Default::default()
    };
    ProcessInfo { pid, info: Some(info).into(), ..Default::default() }
}

/// The service on `shim.sock`.
pub struct TaskService {
    /// What is served.
    pub service: Arc<Service>,
    /// The door, when an engine is behind it.
    pub engine: Option<Arc<Engine>>,
}

impl TaskService {
    fn engine(&self) -> Result<Arc<Engine>, Refusal> {
        let message = "this shim serves kata-runtime, which hands containers over";
        self.engine.clone().ok_or_else(|| Refusal::new(FailureKind::Unimplemented, message))
    }

    /// Pauses or resumes a container, and tells the engine, if there is one, even if it has gone away meanwhile.
    async fn set_paused(
        &self,
        id: &str,
        paused: bool,
        (topic, event): (&'static str, impl MessageFull),
    ) -> ttrpc::Result<Empty> {
        let (container, engine) = (self.service.container(id)?, self.engine.clone());
        whole(async move {
            container.set_paused(paused).await?;
            if let Some(engine) = engine {
                engine.events.publish(topic, &event);
            }
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: task::StateRequest,
    ) -> ttrpc::Result<task::StateResponse> {
        let container = self.service.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let record = container.record();
        let ended = process.ended();
        let status = status_of(&process, record.status);
        Ok(task::StateResponse {
            id: request.id,
            bundle: record.bundle,
            pid: process.monitor.pid,
            status: status.into(),
            stdin: process.names.stdin.clone(),
            stdout: process.names.stdout.clone(),
            stderr: process.names.stderr.clone(),
            terminal: process.terminal,
            exit_status: ended.as_ref().map_or(0, |ended| ended.code.into()),
            exited_at: ended.as_ref().map(exited_at).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: task::StartRequest,
    ) -> ttrpc::Result<task::StartResponse> {
        let container = self.service.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let pid = process.monitor.pid;
        let events = self.engine.clone();
        whole(async move {
            // The news of its end waits for the news of its start.
            let _told = process.telling.lock().await;
            let started = match process.is_init() {
                true => container.start().await,
                false => container.start_added(&process).await,
            };
            let attempted = if process.is_init() { "start" } else { "exec" };
            started.map_err(|refusal| match events {
                Some(_) => refusal.of_program(attempted),
                None => refusal,
            })?;
            if let Some(engine) = events {
                if process.is_init() {
                    engine.poststart(&process.container_id, pid).await;
                }
                engine.tell_start(&process);
            }
            Ok(())
        })
        .await?;
        Ok(task::StartResponse { pid, ..Default::default() })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: task::CreateTaskRequest,
    ) -> ttrpc::Result<task::CreateTaskResponse> {
        let engine = self.engine()?;
        let pid = whole(async move {
            let created = engine.create(&request).await;
            let pid = created.map_err(|refusal| refusal.of_program("create"))?;
            engine.tell_create(&request, pid)?;
            Ok(pid)
        })
        .await?;
        Ok(task::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: task::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let engine = self.engine()?;
        whole(async move {
            let process = engine.add(&request).await?;
            engine.tell_added(&request.id, &process);
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: task::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.service.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.monitor.close_stdin().await;
        }
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: task::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        self.service.container(&request.id)?;
        let message = "checkpoints of containers in a VM are not supported";
        Err(Refusal::new(FailureKind::Unimplemented, message).into())
    }

    async fn kill(&self, _: &TtrpcContext, request: task::KillRequest) -> ttrpc::Result<Empty> {
        let container = self.service.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if request.for_delete {
            process.note_deleted();
        }
        whole(async move { container.signal(&process, request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: task::WaitRequest,
    ) -> ttrpc::Result<task::WaitResponse> {
        let container = self.service.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let ended = match request.until_oom_kills.checked_sub(1) {
            None => process.wait().await,
            Some(fewer) => tokio::select! {
                biased;
                ended = process.wait() => ended,
                oom_kills = container.oom_kills_beyond(fewer) => {
                    return Ok(task::WaitResponse { oom_kills, ..Default::default() });
                }
            },
        };
        Ok(task::WaitResponse {
            exit_status: ended.code.into(),
            exited_at: Some(exited_at(&ended)).into(),
            // What can't be written is not told; strings and numbers can.
            ended: serde_json::to_vec(&ended).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: task::DeleteRequest,
    ) -> ttrpc::Result<task::DeleteResponse> {
        let container = self.service.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let unstarted = !process.is_init() && process.phase() == Phase::Created;
        if process.ended().is_none() && !unstarted {
            return Err(Refusal::precondition("process has not ended").into());
        }
        let (service, engine, deleted) =
            (self.service.clone(), self.engine.clone(), process.clone());
        whole(async move {
            match (&engine, deleted.is_init()) {
                (_, false) => {
                    container.cancel(&deleted).await;
                    if deleted.ended().is_none() {
                        return Err(Refusal::precondition("process has not ended"));
                    }
                    deleted.kill_monitor().await;
                    container.forget(&deleted).await;
                }
                (Some(engine), true) => {
                    engine.delete(&container).await?;
                    engine.tell_delete(&deleted).await;
                    if container.role() == Role::Alone {
                        // Not before: hooks take as long as they like, and the engine hears of the end.
                        service.finish();
                    }
                }
                (None, true) => service.delete_and_finish(&request.id).await?,
            }
            Ok(())
        })
        .await?;
        let ended =
            process.ended().ok_or_else(|| Refusal::precondition("process has not ended"))?;
        Ok(task::DeleteResponse {
            pid: process.monitor.pid,
            // Of what never ran engines expect none.
            exit_status: if unstarted { 0 } else { ended.code.into() },
            exited_at: Some(exited_at(&ended)).into(),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: task::PidsRequest,
    ) -> ttrpc::Result<task::PidsResponse> {
        let container = self.service.container(&request.id)?;
        let pid = container.init().monitor.pid;
        let processes = container.guest_processes().await;
        let mut listed: Vec<ProcessInfo> =
            processes.iter().take(MAX_PIDS).map(|process| listed(pid, process)).collect();
        if listed.is_empty() {
            // A guest that does not answer, or has none any more: engines want the one that stands for the container.
            listed.push(ProcessInfo { pid, ..Default::default() });
        }
        Ok(task::PidsResponse { processes: listed, ..Default::default() })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: task::StatsRequest,
    ) -> ttrpc::Result<task::StatsResponse> {
        let container = self.service.container(&request.id)?;
        let statistics = container.statistics().await?;
        let stats = statistics.to_any(Form::of_host()).map_err(|e| Refusal::internal(&e))?;
        Ok(task::StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: task::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.service.container(&request.id)?;
        let resources = request.resources.unwrap_or_default().value;
        whole(async move { container.update(&resources).await }).await?;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: task::PauseRequest) -> ttrpc::Result<Empty> {
        let event = TaskPaused { container_id: request.id.clone(), ..Default::default() };
        self.set_paused(&request.id, true, ("/tasks/paused", event)).await
    }

    async fn resume(&self, _: &TtrpcContext, request: task::ResumeRequest) -> ttrpc::Result<Empty> {
        let event = TaskResumed { container_id: request.id.clone(), ..Default::default() };
        self.set_paused(&request.id, false, ("/tasks/resumed", event)).await
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: task::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.service.container(&request.id)?;
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
        // An engine learns the shim's pid even where its container is not there, as from runc's shim.
        let container = match (self.service.container(&request.id), &self.engine) {
            (Err(refusal), None) => return Err(refusal.into()),
            (found, _) => found.ok(),
        };
        if let Some(container) = &container {
            // The command line asks this before it reads the record.
            container.catch_up();
        }
        Ok(task::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init().monitor.pid),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: task::ShutdownRequest) -> ttrpc::Result<Empty> {
        // Engines say so after every delete. Without a container the shim has no reason to stay; with one it stays.
        if !self.service.has_container() {
            self.service.finish();
        }
        Ok(Empty::new())
    }
}

#[cfg(test)]
mod tests {
    use kata_engine_api::{
        containerd::process::Status as TaskStatus,
        record::{Cause, Ended, Status},
    };

    use super::status_of;
    use crate::{container::fake_agent::process, process::Phase};

    #[tokio::test]
    async fn an_exec_runs_until_its_own_end_is_known() {
        let exec = process("e");
        assert_eq!(status_of(&exec, Status::Running), TaskStatus::CREATED);
        exec.advance(&[Phase::Created], Phase::Running);
        for (container, expected) in [
            (Status::Created, TaskStatus::RUNNING),
            (Status::Running, TaskStatus::RUNNING),
            (Status::Paused, TaskStatus::PAUSED),
            (Status::Stopped, TaskStatus::RUNNING),
        ] {
            assert_eq!(status_of(&exec, container), expected, "{container:?}");
        }
        exec.publish(Ended::new(0, Cause::Exited, None));
        assert_eq!(status_of(&exec, Status::Running), TaskStatus::STOPPED);
    }

    #[tokio::test]
    async fn an_init_is_what_its_container_is() {
        let init = process("");
        assert_eq!(status_of(&init, Status::Created), TaskStatus::CREATED);
        init.advance(&[Phase::Created], Phase::Running);
        assert_eq!(status_of(&init, Status::Running), TaskStatus::RUNNING);
        assert_eq!(status_of(&init, Status::Paused), TaskStatus::PAUSED);
        assert_eq!(status_of(&init, Status::Stopped), TaskStatus::STOPPED);
    }
}
