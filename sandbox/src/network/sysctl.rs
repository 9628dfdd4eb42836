//! Kernel parameters of a network namespace: those that somebody has set, as CNI's plugin `tuning` does, and those that the
//! container asks for.
//!
//! What was set is what differs from a namespace that was made a moment ago. Nothing tells of a later change, so they
//! are the guest's as they are at its start. Those of single links are not looked at: what the guest needs of them
//! comes with the link.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::NetworkError;

/// Below `/proc/sys`.
const DIRECTORIES: [&str; 5] =
    ["net/core", "net/ipv4", "net/ipv6", "net/ipv4/conf/all", "net/ipv6/conf/all"];

/// What every namespace makes up for itself, and what each link carries with it.
const OTHERS: [&str; 2] = ["tcp_fastopen_key", "disable_ipv6"];

/// The parameters, by their paths below `/proc/sys`, of the namespace of the calling thread.
pub(super) fn read() -> BTreeMap<String, String> {
    DIRECTORIES.iter().flat_map(|directory| read_directory(directory)).collect()
}

fn read_directory(directory: &str) -> Vec<(String, String)> {
    let path = Path::new("/proc/sys").join(directory);
    // A host without IPv6 has none for it.
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let parameter = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        let name = path.file_name()?.to_str()?;
        let settable = metadata.is_file() && metadata.permissions().mode() & 0o200 != 0;
        // Some can't be read before they are set.
        let value = fs::read_to_string(&path).ok().filter(|_| settable)?;
        (!OTHERS.contains(&name)).then(|| (format!("{directory}/{name}"), value.trim().to_owned()))
    };
    entries.filter_map(|entry| parameter(entry.path())).collect()
}

/// Sets parameters of the namespace of the calling thread. What it has none of, or not to be set, is the guest's alone.
pub(super) fn write(sysctls: &BTreeMap<String, String>) -> Result<(), NetworkError> {
    for (path, value) in sysctls {
        match write_one(path, value) {
            Err(error) if is_none_of_ours(&error) => {
                tracing::debug!(path, %error, "a kernel parameter is set in the guest alone");
            }
            written => {
                written.map_err(|source| NetworkError::Sysctl { path: path.clone(), source })?;
            }
        }
    }
    Ok(())
}

fn write_one(path: &str, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(Path::new("/proc/sys").join(path))?;
    file.write_all(value.as_bytes())
}

/// A link may be still to come, and some parameters only the first namespace has, or may set; the guest's is its first one.
fn is_none_of_ours(error: &io::Error) -> bool {
    use ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotFound | PermissionDenied | ReadOnlyFilesystem)
}

/// What was set in a namespace that began as `new` is.
pub(super) fn changed(
    mut there: BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    there.retain(|name, value| new.get(name).is_some_and(|usual| usual != value));
    there
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{changed, read, write};

    #[test]
    fn only_what_differs_was_set() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let new = map(&[("net/core/somaxconn", "4096"), ("net/ipv4/ip_forward", "0")]);
        let there =
            map(&[("net/core/somaxconn", "500"), ("net/ipv4/ip_forward", "0"), ("net/x", "1")]);
        assert_eq!(changed(there, &new), map(&[("net/core/somaxconn", "500")]));
    }

    #[test]
    fn what_is_asked_for_is_set_as_far_as_the_namespace_has_it() {
        const TTL: &str = "net/ipv4/ip_default_ttl";
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIP not root");
        }
        let tried = std::thread::spawn(|| {
            kata_sys::network::enter_new().unwrap();
            let set = |path: &str, value: &str| write(&[(path.into(), value.into())].into());
            set(TTL, "77").unwrap();
            set("net/ipv4/conf/eth9/forwarding", "1").unwrap();
            (set(TTL, "0").unwrap_err().to_string(), read()[TTL].clone())
        });
        assert_eq!(tried.join().unwrap(), (format!("set sysctl {TTL}"), "77".to_owned()));
    }

    #[test]
    fn parameters_have_their_paths_and_values() {
        let there = read();
        assert!(there["net/core/somaxconn"].parse::<u32>().is_ok());
        assert!(!there.contains_key("net/ipv4/tcp_fastopen_key"));
    }
}
