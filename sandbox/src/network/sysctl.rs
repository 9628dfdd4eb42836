//! Kernel parameters of a network namespace: those that somebody has set, as CNI's plugin `tuning` does, and those that the
//! container asks for.
//!
//! What was set is what differs from a namespace that was made a moment ago. Nothing tells of a later change, so those of the
//! namespace as a whole are the guest's as they are at its start, and those of a link as they are whenever the guest is told of
//! the link.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use kata_protocol::sysctl::{KINDS, LONGEST, MOST};

use super::NetworkError;

/// Values by names: paths below `/proc/sys`, or what links call theirs.
pub(super) type Values = BTreeMap<String, String>;

/// Below `/proc/sys`.
const DIRECTORIES: [&str; 5] =
    ["net/core", "net/ipv4", "net/ipv6", "net/ipv4/conf/all", "net/ipv6/conf/all"];

/// What every namespace makes up for itself, and what each link carries with it.
const OTHERS: [&str; 2] = ["tcp_fastopen_key", "disable_ipv6"];

/// Of a link: what it carries anyhow; how it makes addresses up, which no guest's does; and other names for what is there
/// already, of which the kernel complains.
const OTHERS_OF_LINKS: [&str; 6] = [
    "disable_ipv6",
    "mtu",
    "addr_gen_mode",
    "stable_secret",
    "base_reachable_time",
    "retrans_time",
];

/// The link that every namespace has.
const LOOPBACK: &str = "lo";

/// The parameters, by their paths below `/proc/sys`, of the namespace of the calling thread.
pub(super) fn read() -> Values {
    let all = DIRECTORIES.iter().map(|directory| read_directory(directory, directory, &OTHERS));
    all.flatten().collect()
}

/// Those of a link there.
pub(super) fn read_link(link: &str) -> Values {
    let all = KINDS.iter().map(|kind| {
        let directory = format!("net/{kind}/{link}");
        read_directory(&directory, kind, &OTHERS_OF_LINKS)
    });
    all.flatten().collect()
}

fn read_directory(directory: &str, prefix: &str, others: &[&str]) -> Vec<(String, String)> {
    let path = Path::new("/proc/sys").join(directory);
    // A host without IPv6 has none for it.
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let parameter = |path: PathBuf| {
        let metadata = fs::metadata(&path).ok()?;
        let name = path.file_name()?.to_str().filter(|name| !others.contains(name))?;
        let settable = metadata.is_file() && metadata.permissions().mode() & 0o200 != 0;
        // Some can't be read before they are set.
        let value = fs::read_to_string(&path).ok().filter(|_| settable)?;
        Some((format!("{prefix}/{name}"), value.trim().to_owned()))
    };
    entries.filter_map(|entry| parameter(entry.path())).collect()
}

/// How links begin.
#[derive(Debug, Default)]
pub(super) struct Usual {
    loopback: Values,
    others: Values,
}

impl Usual {
    /// In the namespace of the calling thread, which is a new one.
    pub fn read() -> Self {
        let loopback = read_link(LOOPBACK);
        let mut others = loopback.clone();
        // The neighbours' begin alike on every link, and what they begin as only the first namespace shows.
        others.extend(read_link("default"));
        Self { loopback, others }
    }

    /// Has told of each link what was set for all of them: in the guest all are going to have it, and one here may be as usual.
    pub fn but_for(&mut self, set: &Values) {
        let for_all = |path: &String| {
            let (kind, name) = path.strip_prefix("net/")?.split_once("/all/")?;
            Some(format!("{kind}/{name}"))
        };
        for name in set.keys().filter_map(for_all) {
            for usual in [&mut self.loopback, &mut self.others] {
                if let Some(value) = usual.get_mut(&name) {
                    value.clear();
                }
            }
        }
    }

    /// What of a link's was set; of more than can be told some is missing.
    pub fn changed(&self, link: &str, there: Values) -> HashMap<String, String> {
        let usual = if link == LOOPBACK { &self.loopback } else { &self.others };
        let told =
            |(name, value): &(String, String)| name.len() <= LONGEST && value.len() <= LONGEST;
        changed(there, usual).into_iter().filter(told).take(MOST).collect()
    }
}

/// Sets parameters of the namespace of the calling thread. What it has none of, or not to be set, is the guest's alone.
pub(super) fn write(sysctls: &Values) -> Result<(), NetworkError> {
    let mut late = Vec::new();
    for (path, value) in sysctls {
        match write_one(path, value) {
            // Ports to be had are checked against those that need privileges, and the other way round.
            Err(NetworkError::Sysctl { source, .. })
                if source.kind() == ErrorKind::InvalidInput =>
            {
                late.push((path, value));
            }
            written => written?,
        }
    }
    late.into_iter().try_for_each(|(path, value)| write_one(path, value))
}

fn write_one(path: &str, value: &str) -> Result<(), NetworkError> {
    let file = OpenOptions::new().write(true).open(Path::new("/proc/sys").join(path));
    match file.and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(error) if is_none_of_ours(&error) => {
            tracing::debug!(path, %error, "a kernel parameter is set in the guest alone");
            Ok(())
        }
        written => written.map_err(|source| NetworkError::Sysctl { path: path.into(), source }),
    }
}

/// A link may be still to come, and some parameters only the first namespace has, or may set; the guest's is its first one.
fn is_none_of_ours(error: &io::Error) -> bool {
    use ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotFound | PermissionDenied | ReadOnlyFilesystem)
}

/// What was set in a namespace that began as `new` is.
pub(super) fn changed(mut there: Values, new: &Values) -> Values {
    there.retain(|name, value| new.get(name).is_some_and(|usual| usual != value));
    there
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Usual, changed, read, read_link, write};

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn only_what_differs_was_set() {
        let new = map(&[("net/core/somaxconn", "4096"), ("net/ipv4/ip_forward", "0")]);
        let there =
            map(&[("net/core/somaxconn", "500"), ("net/ipv4/ip_forward", "0"), ("net/x", "1")]);
        assert_eq!(changed(there, &new), map(&[("net/core/somaxconn", "500")]));
    }

    #[test]
    fn links_begin_as_others_and_loopback_as_itself() {
        let usual = Usual {
            loopback: map(&[("ipv6/conf/accept_dad", "-1")]),
            others: map(&[("ipv6/conf/accept_dad", "1"), ("ipv4/neigh/app_solicit", "0")]),
        };
        let there = map(&[("ipv6/conf/accept_dad", "-1"), ("ipv4/neigh/app_solicit", "0")]);
        assert!(usual.changed("lo", there.clone()).is_empty());
        let told = usual.changed("eth0", there);
        assert_eq!(told, [("ipv6/conf/accept_dad".into(), "-1".into())].into());
        let long = map(&[("ipv6/conf/accept_dad", &"1".repeat(200))]);
        assert!(usual.changed("eth0", long).is_empty());
    }

    #[test]
    fn what_was_set_for_all_links_is_told_of_each() {
        let both = map(&[("ipv4/conf/forwarding", "0"), ("ipv4/conf/rp_filter", "0")]);
        let mut usual = Usual { loopback: both.clone(), others: both.clone() };
        assert!(usual.changed("eth0", both.clone()).is_empty());
        usual.but_for(&map(&[("net/ipv4/conf/all/forwarding", "1"), ("net/ipv4/ip_forward", "1")]));
        let told = [("ipv4/conf/forwarding".into(), "0".into())];
        assert_eq!(usual.changed("eth0", both), told.into());
    }

    #[test]
    fn a_link_has_names_without_its_own() {
        let loopback = read_link("lo");
        assert!(loopback.contains_key("ipv4/conf/rp_filter"), "{loopback:?}");
        assert!(loopback.contains_key("ipv4/neigh/base_reachable_time_ms"), "{loopback:?}");
        for other in ["ipv4/neigh/retrans_time", "ipv6/conf/mtu", "ipv6/conf/disable_ipv6"] {
            assert!(!loopback.contains_key(other), "{loopback:?}");
        }
        assert!(read_link("none").is_empty());
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
            // The first is refused as long as the second is not set.
            let ports = [
                ("net/ipv4/ip_local_port_range", "1000 2000"),
                ("net/ipv4/ip_unprivileged_port_start", "0"),
            ];
            write(&map(&ports)).unwrap();
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
