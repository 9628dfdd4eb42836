//! `hooks`, of which the guest runs one kind.

use std::collections::BTreeMap;

use kata_hooks::{Hook, HookError, Kind, State, Status, run_all_filtered};
use kata_sys::syscall_filter::Filter;
use serde::Deserialize;

/// Hooks that run in the container, and what they are told of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    start_container: Vec<Hook>,
    /// The host's own addition: what only it knows.
    state: HostState,
}

/// The part of a hook's state that comes from the host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HostState {
    oci_version: String,
    bundle: String,
    annotations: BTreeMap<String, String>,
}

impl Hooks {
    /// Runs what comes before the program, as the process that is to become the program; a hook without an environment
    /// has that of the program. Each loads the filters before its first instruction.
    pub fn before_program(
        &self,
        container_id: &str,
        env: &[String],
        filters: &[Filter<'_>],
    ) -> Result<(), HookError> {
        if self.start_container.is_empty() {
            return Ok(());
        }
        let state = State {
            oci_version: self.state.oci_version.clone(),
            id: container_id.to_owned(),
            status: Status::Created,
            pid: Some(std::process::id()),
            bundle: self.state.bundle.clone(),
            annotations: self.state.annotations.clone(),
        };
        let mut hooks = self.start_container.clone();
        for hook in &mut hooks {
            hook.env.get_or_insert_with(|| env.to_vec());
        }
        run_all_filtered(Kind::StartContainer, &hooks, &state, filters)
    }
}
