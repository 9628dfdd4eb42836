//! Asks a QEMU whether it is one that the driver can use.

use std::{
    fmt,
    fs::File,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
    time::Duration,
};

use kata_sys::{
    scm::stream_pair,
    spawn::{Spawn, SpawnError},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::qmp::{Qmp, QmpError};

/// The oldest QEMU that the driver was run on.
pub const MINIMUM_VERSION: Version = Version { major: 10, minor: 0, micro: 0 };

/// Starting QEMU took 10 s on a cold, overloaded, nested host.
const DEADLINE: Duration = Duration::from_secs(30);

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Something that the driver uses and this QEMU lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// A machine type.
    Machine(&'static str),
    /// A device model or backend.
    Type(&'static str),
    /// Both accelerators.
    Accelerator,
    /// A recent enough version.
    Version(Version),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(name) => write!(f, "machine type {name}"),
            Self::Type(name) => write!(f, "device {name}"),
            Self::Accelerator => f.write_str("accelerator kvm or tcg"),
            Self::Version(found) => {
                write!(f, "version {MINIMUM_VERSION} or later (it is {found})")
            }
        }
    }
}

/// Why a QEMU is not usable.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Sockets.
    #[error("cannot prepare the question to QEMU")]
    Prepare(#[source] io::Error),
    /// It does not even start.
    #[error("cannot start QEMU")]
    Spawn(#[source] SpawnError),
    /// It starts, and does not answer.
    #[error("QEMU does not answer")]
    Ask(#[source] QmpError),
    /// It answers with what can't be understood.
    #[error("QEMU does not say its {0}")]
    Answer(&'static str),
    /// It answers, and is not enough.
    #[error("QEMU lacks {}", list(.0))]
    Lacks(Vec<Missing>),
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(Missing::to_string).collect::<Vec<_>>().join(", ")
}

/// A QEMU that the driver can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Its version.
    pub version: Version,
    /// Whether KVM is compiled in.
    pub kvm: bool,
    /// Whether TCG is compiled in.
    pub tcg: bool,
}

const MACHINES: [&str; 2] = ["microvm", "q35"];

/// Every device and backend of [`super::command_line`].
const TYPES: [&str; 14] = [
    "memory-backend-memfd",
    "pcie-root-port",
    "pvpanic-pci",
    "rng-builtin",
    "vhost-user-fs-device",
    "vhost-user-fs-pci",
    "vhost-user-vsock-device",
    "vhost-user-vsock-pci",
    "virtio-blk-device",
    "virtio-blk-pci",
    "virtio-net-device",
    "virtio-net-pci",
    "virtio-rng-device",
    "virtio-rng-pci",
];

/// Starts `binary` without a machine and asks what it has.
///
/// # Errors
/// [`VerifyError::Lacks`] names all that is missing.
pub async fn verify(binary: &Path) -> Result<Verified, VerifyError> {
    let (near, far) = stream_pair().map_err(VerifyError::Prepare)?;
    let near = std::os::unix::net::UnixStream::from(near);
    near.set_nonblocking(true).map_err(VerifyError::Prepare)?;
    let near = UnixStream::from_std(near).map_err(VerifyError::Prepare)?;
    let null = File::open("/dev/null").map_err(VerifyError::Prepare)?;
    let program = std::ffi::CString::new(binary.as_os_str().as_bytes())
        .map_err(|error| VerifyError::Prepare(error.into()))?;
    let words = [
        c"-machine",
        c"none",
        c"-nodefaults",
        c"-no-user-config",
        c"-display",
        c"none",
        c"-chardev",
        c"socket,id=qmp,fd=3",
        c"-mon",
        c"chardev=qmp,mode=control",
    ];
    let mut spawn = Spawn::new(program);
    spawn.arguments.extend(words.map(Into::into));
    spawn.fds = vec![null.as_fd(), null.as_fd(), null.as_fd(), far.as_fd()];
    let child = spawn.start().map_err(VerifyError::Spawn)?;
    drop(spawn);
    drop(far);
    let answers = ask(&Qmp::start(near)).await;
    // It has no guest and nothing to save.
    child.kill().map_err(VerifyError::Prepare)?;
    child.wait().map_err(VerifyError::Prepare)?;
    judge(&answers?)
}

struct Answers {
    version: Value,
    machines: Value,
    types: Value,
}

async fn ask(qmp: &Qmp) -> Result<Answers, VerifyError> {
    let version = qmp.execute("query-version", DEADLINE).await.map_err(VerifyError::Ask)?;
    let machines = qmp.execute("query-machines", DEADLINE).await.map_err(VerifyError::Ask)?;
    let concrete = json!({ "abstract": false });
    let types = qmp.execute_with("qom-list-types", concrete, DEADLINE).await;
    Ok(Answers { version, machines, types: types.map_err(VerifyError::Ask)? })
}

fn judge(answers: &Answers) -> Result<Verified, VerifyError> {
    let version = Version::deserialize(&answers.version["qemu"])
        .map_err(|_| VerifyError::Answer("version"))?;
    let machines =
        names(&answers.machines, &["name", "alias"]).ok_or(VerifyError::Answer("machine types"))?;
    let types = names(&answers.types, &["name"]).ok_or(VerifyError::Answer("types"))?;
    let has = |name: &str| types.contains(&name);
    let (kvm, tcg) = (has("kvm-accel"), has("tcg-accel"));
    let mut missing = Vec::new();
    if version < MINIMUM_VERSION {
        missing.push(Missing::Version(version));
    }
    if !kvm && !tcg {
        missing.push(Missing::Accelerator);
    }
    let machine = |name: &&str| !machines.contains(name);
    missing.extend(MACHINES.into_iter().filter(machine).map(Missing::Machine));
    missing.extend(TYPES.into_iter().filter(|name| !has(name)).map(Missing::Type));
    if missing.is_empty() {
        Ok(Verified { version, kvm, tcg })
    } else {
        Err(VerifyError::Lacks(missing))
    }
}

/// The values of some keys in a list of objects.
fn names<'a>(list: &'a Value, keys: &[&str]) -> Option<Vec<&'a str>> {
    let values = list.as_array()?.iter().flat_map(|entry| {
        keys.iter().filter_map(|key| entry.get(key)?.as_str()).collect::<Vec<_>>()
    });
    Some(values.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Answers, MACHINES, MINIMUM_VERSION, TYPES, VerifyError, judge};

    fn answers(types: &[&str], machines: &[&str], major: u32) -> Answers {
        let objects =
            |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Value>();
        Answers {
            version: json!({"qemu": {"major": major, "minor": 0, "micro": 2}, "package": "x"}),
            machines: objects(machines),
            types: objects(types),
        }
    }

    fn all_types() -> Vec<&'static str> {
        TYPES.into_iter().chain(["tcg-accel"]).collect()
    }

    #[test]
    fn a_complete_one_is_taken() {
        let verified = judge(&answers(&all_types(), &MACHINES, 10)).unwrap();
        assert_eq!((verified.version.to_string().as_str(), verified.kvm), ("10.0.2", false));
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let types: Vec<&str> = TYPES.into_iter().filter(|name| !name.contains("-fs-")).collect();
        let error = judge(&answers(&types, &["q35"], 7)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "QEMU lacks version 10.0.0 or later (it is 7.0.2), accelerator kvm or tcg, machine type \
             microvm, device vhost-user-fs-device, device vhost-user-fs-pci"
        );
    }

    #[test]
    fn the_packaging_notes_name_all_of_it() {
        let notes = include_str!("../../../qemu/README.md");
        let least = format!("| oldest that is accepted | {MINIMUM_VERSION} |");
        assert!(notes.contains(&least), "{least}");
        for name in TYPES.into_iter().chain(MACHINES) {
            assert!(notes.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let answers = Answers { version: json!("ten"), machines: json!({}), types: Value::Null };
        assert!(matches!(judge(&answers), Err(VerifyError::Answer("version"))));
    }
}
