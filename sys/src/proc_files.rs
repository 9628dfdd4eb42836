//! What may be mounted on a proc file system, as runc has it: host and guest look at it, one at names, one at files.

/// File systems of a kernel, and a tmpfs, which only hides.
pub const COVERING: &[&str] = &["proc", "sysfs", "tmpfs", "mqueue", "cgroup", "cgroup2"];

/// Files that anything may cover, since lxcfs shows them in another way. By their names below `/proc`.
pub const SHOWN_OTHERWISE: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];
