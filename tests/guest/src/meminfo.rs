//! What `/proc/meminfo` says, of the host or of a guest.

/// A value of it in KiB, by its name.
pub fn meminfo_kib(meminfo: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned);
    let value = meminfo.lines().find_map(value).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}
