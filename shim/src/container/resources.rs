//! What a container may use and what it does use.
//!
//! An update is made on the host first, where it is sure to be undone, and then in the guest; the record has what is in
//! force. Statistics are the guest's, and its last word counts when it has none: engines ask after the end, too.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kata_engine_api::{handover::FailureKind, record::Status};
use kata_protocol::agent;
use kata_sandbox::{cgroup::Group, lifecycle::SandboxError, step::Step};
use kata_spec::{HostDisk, Limits, check_change, check_resources, name_disks};
use kata_sys::causes::chain;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Container, Role};
use crate::{
    failure::Refusal,
    process::Phase,
    sizing::{self, MEMORY_NOTE},
    statistics::Statistics,
};

/// Engines take a task that lists no process for a leaked one, and wait for 5 s for the lists of all.
const LISTING: Duration = Duration::from_secs(1);

/// A container's limits and statistics.
pub(super) struct Resources {
    group: Group,
    limits: Mutex<Limits>,
    disks: Vec<HostDisk>,
    /// One update at a time.
    updating: tokio::sync::Mutex<()>,
    last: Mutex<Option<Statistics>>,
}

impl Resources {
    pub(super) fn new(group: Group, limits: Limits, disks: Vec<HostDisk>) -> Self {
        let (updating, last) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { group, limits: Mutex::new(limits), disks, updating, last }
    }

    /// The group on the host.
    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    fn limits(&self) -> Limits {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Container {
    /// Changes limits, as `linux.resources` in JSON says them; what it does not name stays.
    pub async fn update(&self, resources: &[u8]) -> Result<(), Refusal> {
        let invalid = |message: String| Refusal::new(FailureKind::InvalidArgument, message);
        let _only_one = self.resources.updating.lock().await;
        let old = self.resources.limits();
        let change = check_change(resources, &old).map_err(|e| invalid(chain(&e)))?;
        // Not while it enters: the guest has been given the old ones by then, and does not know it yet.
        let entered = self.entered.lock().await;
        if self.record().status == Status::Stopped {
            return Err(Refusal::precondition("cannot update a stopped container"));
        }
        // Who starts it waits for this.
        let outside =
            Some(entered).filter(|entered| !**entered && self.init.phase() <= Phase::Starting);
        let new = old.changed(&change.limits);
        // The pair of memory and swap, of which a change may name one, is checked as a whole.
        let whole = serde_json::to_vec(&new).map_err(|e| Refusal::internal(&e))?;
        check_resources(&whole).map_err(|e| invalid(chain(&e)))?;
        let mut guest = for_guest(&change.guest, &new).map_err(|e| Refusal::internal(&e))?;
        name_disks(&mut guest, &self.resources.disks);
        let done = match self.limit_on_host(&new) {
            // Nothing of it is in the guest.
            Ok(()) if self.role == Role::Pod => Ok(()),
            Ok(()) if outside.is_some() => self.amend_spec(&guest, &new),
            Ok(()) => self.limit_in_guest(&guest, &new).await,
            Err(error) => Err(Refusal::from(error)),
        };
        drop(outside);
        if let Err(refusal) = done {
            if let Err(error) = self.limit_on_host(&old.over(&new)) {
                tracing::warn!(%error, "take a refused update back");
            }
            return Err(refusal);
        }
        *self.resources.limits.lock().unwrap_or_else(PoisonError::into_inner) = new.clone();
        let budget = self.sandbox.budget();
        // Who is made in its place is told the same.
        budget.promise(new.memory_bytes().unwrap_or_default());
        let note = sizing::excess_note(&new, budget.memory());
        if let Some(note) = &note {
            tracing::warn!(note, "update");
        }
        self.update_record(|record| {
            record.resources = serde_json::to_value(&new).unwrap_or_default();
            record.sandbox.remove(MEMORY_NOTE);
            record.sandbox.extend(note.map(|note| (MEMORY_NOTE.to_owned(), note)));
        });
        Ok(())
    }

    fn limit_on_host(&self, limits: &Limits) -> Result<(), SandboxError> {
        self.sandbox.steps().enter(Step::LimitCgroup)?;
        self.resources.group.limit(limits)?;
        if self.role == Role::Pod {
            // What the VM may have is the sum of what is in it.
            return Ok(());
        }
        Ok(self.sandbox.budget().admit(&self.init.container_id, limits)?)
    }

    async fn limit_in_guest(&self, resources: &Value, limits: &Limits) -> Result<(), Refusal> {
        let request = agent::UpdateContainerRequest {
            container_id: self.init.container_id.clone(),
            resources: resources.to_string().into_bytes(),
            vcpus: self.processors(limits).unwrap_or(0).min(self.sandbox.max_vcpus()),
            ..Default::default()
        };
        Ok(self.sandbox.agent()?.update_container(&request).await.map(drop)?)
    }

    fn processors(&self, limits: &Limits) -> Option<u32> {
        match self.role {
            Role::Member => sizing::member_cpus(limits, self.sandbox.budget().shares()),
            Role::Alone | Role::Pod => limits.cpus(),
        }
    }

    /// Sees to it that a container that joins a guest finds as many processors as it may use.
    pub(super) async fn bring_processors_up(&self) -> Result<(), Refusal> {
        let limits = self.resources.limits();
        match self.processors(&limits) {
            Some(2..) => self.limit_in_guest(&json!({}), &limits).await,
            _ => Ok(()),
        }
    }

    /// Of a container that is not in a guest yet.
    fn amend_spec(&self, change: &Value, new: &Limits) -> Result<(), Refusal> {
        let mut spec = self.spec.lock().unwrap_or_else(PoisonError::into_inner);
        let mut document: Value =
            serde_json::from_slice(&spec).map_err(|e| Refusal::internal(&e))?;
        amend(&mut document["linux"]["resources"], change, new);
        *spec = document.to_string().into_bytes();
        Ok(())
    }

    /// What the container uses; after its end, or when its guest does not answer, what it last was known to use.
    pub async fn statistics(&self) -> Result<Statistics, Refusal> {
        let status = self.record().status;
        if !matches!(status, Status::Running | Status::Paused) {
            return Ok(self.last_statistics().unwrap_or_else(Statistics::none));
        }
        match self.ask_for_statistics().await {
            Ok(statistics) => Ok(statistics),
            Err(refusal) => self.last_statistics().ok_or(refusal),
        }
    }

    /// Asks the guest, and keeps its answer.
    pub(super) async fn ask_for_statistics(&self) -> Result<Statistics, Refusal> {
        if self.role == Role::Pod {
            // As good as nothing, too, is what a pause program uses.
            return Ok(Statistics::none());
        }
        let container = self.reference();
        let answer = self.sandbox.agent()?.container_stats(&container).await?;
        let statistics = Statistics::parse(&answer.files);
        let mut last = self.resources.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(statistics.clone());
        Ok(statistics)
    }

    fn last_statistics(&self) -> Option<Statistics> {
        self.resources.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Processes of the container, as the guest knows them; none when it does not answer.
    pub async fn guest_processes(&self) -> Vec<agent::ProcessDetails> {
        if self.role == Role::Pod {
            return Vec::new();
        }
        let Ok(agent) = self.sandbox.agent() else { return Vec::new() };
        match timeout(LISTING, agent.list_processes(&self.reference())).await {
            Ok(Ok(answer)) => answer.processes,
            Ok(Err(error)) => {
                tracing::debug!(%error, "list the processes of the guest");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// A change as the guest needs it: values that hold only together come together.
fn for_guest(change: &[u8], new: &Limits) -> serde_json::Result<Value> {
    let mut change: Value = serde_json::from_slice(change)?;
    let asks = |object: &Value, name: &str| !object[name].is_null() && object[name] != json!(0);
    let memory = &mut change["memory"];
    if asks(memory, "limit") || asks(memory, "swap") {
        memory["limit"] = json!(new.memory.limit);
        memory["swap"] = json!(new.memory.swap);
        // The guest writes it last; on the host the VM's group goes by it.
        if let Some(swap) = &new.unified.swap_max {
            change["unified"]["memory.swap.max"] = json!(swap);
        }
    }
    let cpu = &mut change["cpu"];
    if asks(cpu, "quota") || asks(cpu, "period") {
        cpu["quota"] = json!(new.cpu.quota);
        cpu["period"] = json!(new.cpu.period);
    }
    Ok(change)
}

/// Puts a change into what a container is to start with.
fn amend(resources: &mut Value, change: &Value, new: &Limits) {
    overlay(resources, change);
    let unified = resources.get_mut("unified").and_then(Value::as_object_mut);
    if let Some(unified) = unified.filter(|_| new.unified.swap_max.is_none()) {
        unified.remove("memory.swap.max");
    }
}

/// Of `cpu`: everywhere else zero is "not asked for".
const ZERO_IS_A_VALUE: [&str; 2] = ["burst", "idle"];

/// Puts what asks for something over what was there.
fn overlay(under: &mut Value, over: &Value) {
    match over {
        Value::Object(fields) => {
            if !under.is_object() {
                *under = json!({});
            }
            for (name, value) in fields {
                if ZERO_IS_A_VALUE.contains(&name.as_str()) && !value.is_null() {
                    under[name] = value.clone();
                    continue;
                }
                overlay(&mut under[name], value);
            }
        }
        Value::Null => {}
        value if *value == json!(0) || *value == json!("") || *value == json!([]) => {}
        value => *under = value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use kata_spec::{check_change, check_resources};
    use serde_json::{Value, json};

    use super::{amend, for_guest, overlay};

    #[test]
    fn what_holds_only_together_comes_together() {
        let old = br#"{"memory": {"limit": 100, "swap": 300}, "cpu": {"quota": 5, "period": 10}}"#;
        let change = br#"{"memory": {"limit": 200}, "cpu": {"quota": 7}}"#;
        let checked = check_resources(change).unwrap();
        let new = check_resources(old).unwrap().limits.changed(&checked.limits);
        let guest = for_guest(&checked.guest, &new).unwrap();
        assert_eq!(guest["memory"], json!({"limit": 200, "swap": 300}));
        assert_eq!(guest["cpu"], json!({"quota": 7, "period": 10}));
        assert_eq!(guest["unified"], json!(null));
    }

    #[test]
    fn a_file_that_limits_swap_holds_whatever_is_said_of_memory() {
        let file = br#"{"unified": {"memory.swap.max": "0"}}"#;
        let old = check_resources(file).unwrap().limits;
        for (change, unified) in [
            (r#"{"memory": {"limit": 200, "swap": 300}}"#, json!({"memory.swap.max": "0"})),
            (r#"{"memory": {"limit": -1}}"#, json!({"memory.swap.max": "0"})),
            (
                r#"{"memory": {"limit": 9}, "unified": {"memory.swap.max": "5"}}"#,
                json!({"memory.swap.max": "5"}),
            ),
            (r#"{"pids": {"limit": 7}}"#, json!(null)),
        ] {
            let checked = check_resources(change.as_bytes()).unwrap();
            let guest = for_guest(&checked.guest, &old.changed(&checked.limits)).unwrap();
            assert_eq!(guest["unified"], unified, "{change}");
        }
    }

    #[test]
    fn a_container_starts_without_what_was_only_kept_of_swap() {
        let resources = |unified: Value| {
            let memory = json!({"limit": 100, "swap": 200});
            json!({"memory": memory, "unified": unified}).to_string().into_bytes()
        };
        let change = br#"{"memory": {"limit": 100, "swap": 300}}"#;
        for (unified, left) in [
            (json!({"memory.max": "max"}), json!({})),
            (json!({"memory.swap.max": "7"}), json!({"memory.swap.max": "7"})),
        ] {
            let old = check_resources(&resources(unified)).unwrap();
            let checked = check_change(change, &old.limits).unwrap();
            let new = old.limits.changed(&checked.limits);
            let mut guest = serde_json::from_slice(&old.guest).unwrap();
            amend(&mut guest, &for_guest(&checked.guest, &new).unwrap(), &new);
            assert_eq!(guest["memory"], json!({"limit": 100, "swap": 300}));
            assert_eq!(guest["unified"], left);
        }
    }

    #[test]
    fn zero_changes_nothing() {
        let mut under = json!({"pids": {"limit": 5}, "cpu": {"cpus": "0", "quota": 9}});
        overlay(
            &mut under,
            &json!({"pids": {"limit": 0}, "cpu": {"cpus": "", "quota": 0}, "memory": {"limit": 7}}),
        );
        let expected =
            json!({"pids": {"limit": 5}, "cpu": {"cpus": "0", "quota": 9}, "memory": {"limit": 7}});
        assert_eq!(under, expected);
    }

    #[test]
    fn zero_ends_a_burst_and_idleness() {
        let mut under = json!({"cpu": {"burst": 5, "idle": 1}});
        overlay(&mut under, &json!({"cpu": {"burst": 0, "idle": null}}));
        assert_eq!(under, json!({"cpu": {"burst": 0, "idle": 1}}));
        overlay(&mut under, &json!({"cpu": {"idle": 0}}));
        assert_eq!(under, json!({"cpu": {"burst": 0, "idle": 0}}));
    }
}
