//! A process of a guest, as `ProcessInfo.info` of the Task service tells it beside a pid of the host.

use serde::{Deserialize, Serialize};

/// What `ps` shows of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Wire", from = "Wire")]
pub struct GuestProcess {
    /// In the guest.
    pub pid: u32,
    /// Likewise.
    pub parent: u32,
    /// Of its user, in the guest.
    pub uid: u32,
    /// CPU time that it has used, in milliseconds.
    pub cpu_ms: u64,
    /// How long it has been there, likewise.
    pub age_ms: u64,
    /// Device number of its terminal; 0: none.
    pub terminal: u32,
    /// Its arguments, or its name in brackets.
    pub command: String,
}

impl GuestProcess {
    /// `type_url` of the message, whose value is JSON. Clients of containerd refuse a list with a type that they don't
    /// know; this one all of them know, and fields that it does not have they pass over.
    pub const TYPE: &'static str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
}

/// The `Process` of the OCI runtime spec, and what it has no field for.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    user: User,
    args: Vec<String>,
    /// Demanded by the spec; not known of others' processes.
    cwd: String,
    pid: u32,
    parent: u32,
    cpu_ms: u64,
    age_ms: u64,
    /// Not `terminal`, which the spec has, as a yes or no.
    tty_device: u32,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct User {
    uid: u32,
    gid: u32,
}

impl From<GuestProcess> for Wire {
    fn from(process: GuestProcess) -> Self {
        let GuestProcess { pid, parent, uid, cpu_ms, age_ms, terminal, command } = process;
        let user = User { uid, gid: 0 };
        let (args, cwd, tty_device) = (vec![command], String::new(), terminal);
        Self { user, args, cwd, pid, parent, cpu_ms, age_ms, tty_device }
    }
}

impl From<Wire> for GuestProcess {
    fn from(wire: Wire) -> Self {
        let Wire { user, args, pid, parent, cpu_ms, age_ms, tty_device: terminal, .. } = wire;
        let (uid, command) = (user.uid, args.join(" "));
        Self { pid, parent, uid, cpu_ms, age_ms, terminal, command }
    }
}

#[cfg(test)]
mod tests {
    use super::GuestProcess;

    #[test]
    fn what_is_told_is_a_process_of_the_spec_and_comes_back_whole() {
        let process = GuestProcess {
            pid: 7,
            parent: 1,
            age_ms: 9,
            terminal: 0x8800,
            uid: 1000,
            cpu_ms: 12,
            command: "sleep 5".to_owned(),
        };
        let told = serde_json::to_value(&process).unwrap();
        assert_eq!(told["user"]["uid"], 1000);
        assert_eq!(told["args"][0], "sleep 5");
        assert_eq!(serde_json::from_value::<GuestProcess>(told).unwrap(), process);
    }
}
