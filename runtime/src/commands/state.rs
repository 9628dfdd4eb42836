//! `state`: runc's fields, and what only a VM has under a key of its own.

use std::{collections::BTreeMap, path::Path, time::Duration};

use kata_engine_api::{
    handover::FailureKind,
    record::{Ended, Record, Status},
};
use serde::Serialize;

use super::{Context, NOT_RUNNING, print_json};
use crate::{
    failure::Failure,
    id::ContainerId,
    offline,
    sandbox_dir::SandboxDir,
    shim_client::{IMPATIENCE, ShimClient, block_on, is_there},
};

/// The shim hears of an end a moment after whoever waits for the monitor; more than a moment is another problem.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: u32,
    status: Status,
    bundle: &'a str,
    rootfs: &'a str,
    created: &'a str,
    owner: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    kata: Additions<'a>,
}

/// What runc's state has no word for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Additions<'a> {
    /// The shim is there and does not answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unresponsive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<&'a Ended>,
    shim_pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    vmm_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_pid: Option<u32>,
    #[serde(flatten)]
    sandbox: &'a BTreeMap<String, String>,
}

impl Context<'_> {
    pub(super) fn state(&self, id: &ContainerId) -> Result<(), Failure> {
        let dir = self.root.open(id)?;
        let Known { record, unresponsive } = self.known(&dir, id)?;
        print_json(&view(&record, unresponsive))
    }

    /// The record of a container, as far as it can be known.
    pub(super) fn record(&self, dir: &SandboxDir, id: &ContainerId) -> Result<Record, Failure> {
        Ok(self.known(dir, id)?.record)
    }

    /// The truth about a container: the shim's record while there is a shim, else what can be found out.
    fn known(&self, dir: &SandboxDir, id: &ContainerId) -> Result<Known, Failure> {
        let was_recorded = dir.record()?.is_some();
        match block_on(live_record(dir, id)) {
            Ok(Live::Record(record)) => Ok(Known { record: *record, unresponsive: false }),
            Ok(Live::NoRecord) if was_recorded || dir.is_gone() => Err(self.root.unknown(id)),
            Ok(Live::NoRecord) => Err(being_created(id)),
            Err(Failure::Unresponsive { id }) => {
                let record = dir.record()?.ok_or(Failure::Unresponsive { id })?;
                Ok(Known { record, unresponsive: true })
            }
            Ok(Live::Gone) => match offline::state(&self.prefix, dir)? {
                // The shim was not gone, but not there yet.
                _ if !was_recorded && is_there(dir) => Err(being_created(id)),
                record => Ok(Known { record, unresponsive: false }),
            },
            Err(failure) => Err(failure),
        }
    }
}

/// Who has a shim and no record has not been created: whether it ever will be is not known.
pub(super) fn being_created(id: &ContainerId) -> Failure {
    Failure::Refused {
        kind: FailureKind::FailedPrecondition,
        message: format!("{NOT_RUNNING}: {id} is still being created"),
    }
}

/// What is known of a container.
struct Known {
    record: Record,
    /// The shim is there and says nothing: what it has recorded may be out of date.
    unresponsive: bool,
}

/// What a live shim knows.
enum Live {
    /// There is no shim.
    Gone,
    /// It has not been given a container yet.
    NoRecord,
    /// What it has recorded.
    Record(Box<Record>),
}

/// The record of a shim that answers.
async fn live_record(dir: &SandboxDir, id: &ContainerId) -> Result<Live, Failure> {
    let Some(shim) = ShimClient::find(dir, id, IMPATIENCE).await? else { return Ok(Live::Gone) };
    let Some(record) = dir.record()? else { return Ok(Live::NoRecord) };
    if !has_unnoticed_end(&record) {
        return Ok(Live::Record(Box::new(record)));
    }
    match tokio::time::timeout(MOMENT, shim.wait()).await {
        // Whoever took the call was about to end itself.
        Ok(Err(_)) => Ok(Live::Gone),
        // Whether it has noticed by then or not: the record is what it knows.
        Ok(Ok(_)) | Err(_) => {
            let record = dir.record()?.map(Box::new);
            Ok(record.map_or(Live::NoRecord, Live::Record))
        }
    }
}

/// The container's pid is gone, and nobody has said so yet.
pub(super) fn has_unnoticed_end(record: &Record) -> bool {
    matches!(record.status, Status::Created | Status::Running | Status::Paused)
        && !Path::new(&format!("/proc/{}", record.pid)).exists()
}

fn view(record: &Record, unresponsive: bool) -> State<'_> {
    State {
        oci_version: &record.oci_version,
        id: &record.id,
        pid: if record.status == Status::Stopped { 0 } else { record.pid },
        status: record.status,
        bundle: &record.bundle,
        rootfs: &record.rootfs,
        created: &record.created,
        // runc says it in lists alone.
        owner: "",
        annotations: &record.annotations,
        kata: Additions {
            unresponsive,
            ended: record.ended.as_ref(),
            shim_pid: record.shim_pid,
            vmm_pid: record.vmm_pid,
            proxy_pid: record.proxy_pid,
            sandbox: &record.sandbox,
        },
    }
}

/// Name of a user of this host; the number where it has none. A static program asks no name service.
pub(super) fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or(number)
}

#[cfg(test)]
pub(super) mod tests {
    use kata_engine_api::record::{Cause, Ended, Record, Status};

    use super::{has_unnoticed_end, owner, view};

    pub(crate) fn record(status: Status) -> Record {
        Record {
            oci_version: "1.0.2".into(),
            id: "c1".into(),
            status,
            pid: std::process::id(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "1970-01-01T00:00:00Z".into(),
            owner_uid: 0,
            annotations: [("a".into(), "b".into())].into(),
            ended: None,
            shim_pid: 2,
            vmm_pid: Some(3),
            proxy_pid: None,
            resources: serde_json::Value::Null,
            sandbox: [("machine".into(), "microvm".into())].into(),
        }
    }

    #[test]
    fn the_fields_are_runc_s_in_runc_s_order() {
        let text = serde_json::to_string(&view(&record(Status::Running), false)).unwrap();
        let pid = std::process::id();
        assert_eq!(
            text,
            format!(
                r#"{{"ociVersion":"1.0.2","id":"c1","pid":{pid},"status":"running","bundle":"/b","#
            ) + r#""rootfs":"/b/rootfs","created":"1970-01-01T00:00:00Z","owner":"","#
                + r#""annotations":{"a":"b"},"kata":{"shimPid":2,"vmmPid":3,"machine":"microvm"}}"#
        );
    }

    #[test]
    fn a_stopped_container_has_no_pid_but_a_cause() {
        let ended = Ended::new(137, Cause::VmmKilled, None);
        let record = Record { ended: Some(ended), ..record(Status::Stopped) };
        let json = serde_json::to_value(view(&record, false)).unwrap();
        assert_eq!(json["pid"], 0);
        assert_eq!(json["kata"]["ended"]["cause"], "vmm_killed");
    }

    #[test]
    fn an_end_that_nobody_noticed_is_noticed() {
        assert!(!has_unnoticed_end(&record(Status::Running)));
        let gone = Record { pid: 0x7fff_ffff, ..record(Status::Running) };
        assert!(has_unnoticed_end(&gone));
        assert!(!has_unnoticed_end(&Record { status: Status::Stopped, ..gone }));
    }

    #[test]
    fn owners_without_a_name_are_numbers() {
        assert_eq!(owner(0), "root");
        assert_eq!(owner(4_000_000_000), "4000000000");
    }
}
