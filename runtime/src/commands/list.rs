//! `list`: every container of this root, the ones whose shim is gone too.

use std::collections::BTreeMap;

use kata_engine_api::record::{Record, Status};
use serde::Serialize;

use super::{Context, print, print_json_line, state::owner};
use crate::{
    args::{List, ListFormat},
    failure::Failure,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    oci_version: String,
    id: String,
    pid: u32,
    status: Status,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Context<'_> {
    pub(super) fn list(&self, typed: &List) -> Result<(), Failure> {
        self.root.must_be_there()?;
        let ids = self.root.ids()?;
        if typed.quiet {
            return print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
        }
        let mut rows = Vec::new();
        for id in ids {
            // One that is deleted meanwhile, or that has no record yet, is not to spoil the list.
            match self.root.open(&id).and_then(|dir| self.record(&dir, &id)) {
                Ok(record) => rows.push(row(record)),
                Err(Failure::Unknown { .. }) => {}
                Err(failure) => self.journal.warn(&format!("list: {id}: {}", failure.line())),
            }
        }
        match typed.format {
            ListFormat::Json => print_json_line(&rows),
            ListFormat::Table => print(&table(&rows)),
        }
    }
}

fn row(record: Record) -> Row {
    Row {
        pid: if record.status == Status::Stopped { 0 } else { record.pid },
        owner: owner(record.owner_uid),
        oci_version: record.oci_version,
        id: record.id,
        status: record.status,
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        annotations: record.annotations,
    }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let (pid, status) = (row.pid.to_string(), row.status.name().to_owned());
        [row.id.clone(), pid, status, row.bundle.clone(), row.created.clone(), row.owner.clone()]
    }));
    align(&lines)
}

/// Columns side by side, as wide as their longest field.
pub(super) fn align<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let mut text = String::new();
    for line in lines {
        let padded = line.iter().enumerate().map(|(column, field)| {
            let width = width(column).unwrap_or_default();
            format!("{field:<width$}")
        });
        text.push_str(padded.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use kata_engine_api::record::{Record, Status};

    use super::{row, table};
    use crate::commands::state::tests::record;

    #[test]
    fn columns_line_up() {
        let rows = [row(record(Status::Stopped))];
        assert_eq!(
            table(&rows),
            "ID   PID   STATUS    BUNDLE   CREATED                OWNER\n\
             c1   0     stopped   /b       1970-01-01T00:00:00Z   root\n"
        );
    }

    #[test]
    fn the_fields_are_runc_s_in_runc_s_order() {
        let listed = |record| serde_json::to_string(&row(record)).unwrap();
        let text = r#"{"ociVersion":"1.0.2","id":"c1","pid":0,"status":"stopped","bundle":"/b","rootfs":"/b/rootfs","#
            .to_owned()
            + r#""created":"1970-01-01T00:00:00Z","annotations":{"a":"b"},"owner":"root"}"#;
        assert_eq!(listed(record(Status::Stopped)), text);
        let bare = Record { annotations: Default::default(), ..record(Status::Stopped) };
        assert_eq!(listed(bare), text.replace(r#""annotations":{"a":"b"},"#, ""));
    }
}
