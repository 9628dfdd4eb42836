//! The root file system that an engine describes as a list of mounts.

use std::{
    io,
    path::{Path, PathBuf},
};

use kata_engine_api::containerd::mount;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
use thiserror::Error;

/// Why it can't be mounted.
#[derive(Debug, Error)]
#[error("mount {kind} {from} on {to}", from = source_path, to = target.display())]
pub struct RootfsError {
    kind: String,
    source_path: String,
    target: PathBuf,
    source: io::Error,
}

/// One mount, as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

impl From<&mount::Mount> for Mount {
    fn from(mount: &mount::Mount) -> Self {
        Self {
            kind: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        }
    }
}

/// Mounts everything on `root`, in order. The caller is in a namespace of which nothing is seen elsewhere.
///
/// # Errors
/// [`RootfsError`].
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), RootfsError> {
    for mount in mounts {
        let target = root.join(mount.target.trim_start_matches('/'));
        mount.make(&target).map_err(|source| RootfsError {
            kind: mount.kind.clone(),
            source_path: mount.source.clone(),
            target: target.clone(),
            source,
        })?;
    }
    Ok(())
}

impl Mount {
    fn make(&self, target: &Path) -> io::Result<()> {
        // Words of containerd's own, for a pod with a user namespace; a file system would call them invalid.
        let maps = |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
        if self.options.iter().any(maps) {
            let why = "uidmap and gidmap: the ids of a root can't be mapped";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        std::fs::create_dir_all(target)?;
        let parsed = Parsed::of(&self.options);
        let bind = parsed.flags.contains(MountFlags::BIND);
        let flags =
            if bind { parsed.flags & (MountFlags::BIND | MountFlags::REC) } else { parsed.flags };
        let data = std::ffi::CString::new(parsed.data.join(",")).map_err(io::Error::other)?;
        rustix::mount::mount(&self.source, target, self.kind.as_str(), flags, data.as_c_str())?;
        let rest = parsed.flags & !(MountFlags::BIND | MountFlags::REC);
        if bind && !rest.is_empty() {
            // A bind mount takes its flags only afterwards.
            rustix::mount::mount_remount(target, MountFlags::BIND | rest, c"")?;
        }
        if !parsed.propagation.is_empty() {
            mount_change(target, parsed.propagation)?;
        }
        Ok(())
    }
}

struct Parsed {
    flags: MountFlags,
    propagation: MountPropagationFlags,
    data: Vec<String>,
}

impl Parsed {
    fn of(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            data: Vec::new(),
        };
        for option in options {
            if let Some((flag, set)) = flag(option) {
                parsed.flags.set(flag, set);
            } else if let Some(kind) = propagation(option) {
                parsed.propagation |= kind;
            } else if !option.starts_with("X-containerd.") && option != "loop" {
                parsed.data.push(option.clone());
            }
        }
        parsed
    }
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "bind" => (MountFlags::BIND, true),
        "rbind" => (MountFlags::BIND | MountFlags::REC, true),
        "ro" => (MountFlags::RDONLY, true),
        "rw" | "defaults" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "relatime" => (MountFlags::RELATIME, true),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (kind, tree) = match option.strip_prefix('r') {
        Some(kind @ ("private" | "shared" | "slave" | "unbindable")) => (kind, true),
        _ => (option, false),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if tree { kind | MountPropagationFlags::REC } else { kind })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::mount::MountFlags;

    use super::{Mount, Parsed};

    #[test]
    fn flags_are_told_from_data() {
        let options = ["rbind", "ro", "lowerdir=/a:/b", "index=off"].map(str::to_owned);
        let parsed = Parsed::of(&options);
        assert_eq!(parsed.flags, MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY);
        assert_eq!(parsed.data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn ids_of_a_root_are_not_mapped() {
        for option in ["uidmap=0:100000:65536", "gidmap=0:100000:65536"] {
            let mount = Mount {
                kind: "overlay".into(),
                source: "overlay".into(),
                target: String::new(),
                options: vec!["lowerdir=/a:/b".into(), option.into()],
            };
            let error = mount.make(Path::new("/no/such")).unwrap_err();
            assert!(error.to_string().contains("can't be mapped"), "{error}");
        }
    }

    #[test]
    fn the_last_word_counts() {
        let parsed = Parsed::of(&["ro".to_owned(), "rw".to_owned()]);
        assert!(parsed.flags.is_empty());
    }
}
