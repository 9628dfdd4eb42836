//! Which events tell an engine what.
//!
//! ```text
//! create → start → (exec-added → exec-started → exit of it)* → oom → exit → delete
//! ```

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use kata_engine_api::{
    containerd::{
        task::CreateTaskRequest,
        task_events::{
            TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM,
            TaskStart,
        },
        timestamp::Timestamp,
    },
    record::Ended,
};
use tokio::time::timeout;

use super::Engine;
use crate::{
    container::Container,
    failure::Refusal,
    process::{LAST_STEPS, LATE_OUTPUT, Phase, Process},
};

/// Additional processes end with their container; so long their news may come before its. Output may be late besides,
/// and then a monitor.
const LAST_WORDS: Duration =
    LATE_OUTPUT.saturating_add(LAST_STEPS).saturating_add(Duration::from_secs(1));

impl Engine {
    /// A container is there; its end will be told too.
    pub fn tell_create(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        pid: u32,
    ) -> Result<(), Refusal> {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        };
        self.events.publish("/tasks/create", &event);
        let container = self.service.container(&request.id)?;
        container.init().note_exit_owed(true);
        tokio::spawn(self.clone().follow_init(container));
        Ok(())
    }

    /// An additional process is there.
    pub fn tell_added(&self, id: &str, process: &Process) {
        let event = TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: process.exec_id.clone(),
            ..Default::default()
        };
        self.events.publish("/tasks/exec-added", &event);
    }

    /// A process runs. The end of an additional one will be told too: where the start failed there is none, and an engine
    /// would take its code for the program's.
    pub fn tell_start(self: &Arc<Self>, process: &Arc<Process>) {
        let (container_id, pid) = (process.container_id.clone(), process.monitor.pid);
        if process.is_init() {
            let event = TaskStart { container_id, pid, ..Default::default() };
            return self.events.publish("/tasks/start", &event);
        }
        process.note_exit_owed(true);
        let exec_id = process.exec_id.clone();
        let event = TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
        self.events.publish("/tasks/exec-started", &event);
        tokio::spawn(self.clone().follow(process.clone()));
    }

    /// A container is deleted, of whose end the engine hears first.
    pub async fn tell_delete(&self, process: &Process) {
        // Who tells its start may be held up by a hook.
        if timeout(LAST_WORDS, process.exit_told()).await.is_err() {
            tracing::warn!(id = process.container_id, "deleted before its exit could be told");
        }
        let Some(ended) = process.ended() else { return };
        let event = TaskDelete {
            container_id: process.container_id.clone(),
            pid: process.monitor.pid,
            exit_status: ended.code.into(),
            exited_at: Some(Timestamp::from(ended.at())).into(),
            ..Default::default()
        };
        self.events.publish("/tasks/delete", &event);
    }

    async fn follow_init(self: Arc<Self>, container: Arc<Container>) {
        let init = container.init().clone();
        let mut kills = 0;
        let ended = loop {
            tokio::select! {
                ended = init.wait() => break ended,
                count = container.oom_kills_beyond(kills) => {
                    kills = count;
                    self.tell_oom(&init);
                }
            }
        };
        hear_out(&container.added()).await;
        let _in_order = init.telling.lock().await;
        if ended.cause.is_out_of_memory() && kills == 0 {
            self.tell_oom(&init);
        }
        self.tell_exit(&init, &ended);
        init.note_exit_owed(false);
    }

    async fn follow(self: Arc<Self>, process: Arc<Process>) {
        let ended = process.wait().await;
        let _in_order = process.telling.lock().await;
        self.tell_exit(&process, &ended);
        process.note_exit_owed(false);
    }

    fn tell_oom(&self, init: &Process) {
        let container_id = init.container_id.clone();
        let event = TaskOOM { container_id, ..Default::default() };
        self.events.publish_unasked("/tasks/oom", &event);
    }

    fn tell_exit(&self, process: &Process, ended: &Ended) {
        let id = if process.is_init() { &process.container_id } else { &process.exec_id };
        let event = TaskExit {
            container_id: process.container_id.clone(),
            id: id.clone(),
            pid: process.monitor.pid,
            exit_status: ended.code.into(),
            exited_at: Some(Timestamp::from(ended.at())).into(),
            ..Default::default()
        };
        self.events.publish("/tasks/exit", &event);
    }
}

/// Waits until the ends of additional processes are told, as far as they were started: their container's comes last.
async fn hear_out(added: &[Arc<Process>]) {
    let started = added.iter().filter(|process| process.phase() > Phase::Created);
    if timeout(LAST_WORDS, join_all(started.map(|process| process.exit_told()))).await.is_err() {
        tracing::warn!("a process outlives its container");
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::{Instant, sleep};

    use super::{LAST_WORDS, hear_out};
    use crate::{
        container::fake_agent::process,
        process::{LATE_OUTPUT, Phase, Process},
    };

    fn started() -> Arc<Process> {
        let process = process("e");
        process.advance(&[Phase::Created], Phase::Starting);
        process.note_exit_owed(true);
        process
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_container_comes_after_those_of_its_processes() {
        let (late, unstarted, begun) = (started(), process("u"), Instant::now());
        let telling = async {
            let _in_order = late.telling.lock().await;
            sleep(LATE_OUTPUT).await;
            late.note_exit_owed(false);
        };
        let all = [late.clone(), unstarted];
        tokio::join!(telling, hear_out(&all));
        let took = begun.elapsed();
        assert!(took >= LATE_OUTPUT && took < LAST_WORDS, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_processes_together_are_waited_for_no_longer_than_one() {
        let begun = Instant::now();
        hear_out(&[started(), started(), started()]).await;
        // tokio's clock ticks in milliseconds.
        assert!(begun.elapsed() <= LAST_WORDS + Duration::from_millis(10), "{:?}", begun.elapsed());
    }
}
