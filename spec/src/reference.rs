//! The page that says of each field what becomes of it, written from the table.

use std::fmt::Write;

use crate::table::{Explained, rows};

/// What no single row says: rules, in the order of the specification.
const RULES: &[(&str, &str)] = &[
    ("ociVersion", "any 1.x; minor versions only add"),
    (
        "mounts",
        "at most 2048; a volume takes two descriptors of those who make a container (`ulimit -n`)",
    ),
    (
        "mounts[].destination",
        "volumes at `/proc` and below it are refused, as by runc, but for the files that lxcfs shows in another way",
    ),
    (
        "mounts[].type",
        "file systems of a kernel are made in the guest; a bind mount of a directory or file of the host is a volume; \
         an overlay is mounted on the host; any other is refused",
    ),
    (
        "mounts[].source",
        "`/dev/shm` from an engine is shared memory of the guest; `/sys` and control groups are the guest's; `/proc` and other \
         views of the host's kernel, huge pages of the host, sockets and fifos are refused, but what is mounted below the source of an \
         `rbind` comes along, such views, too, as with `/`; a device is the guest's of the same number",
    ),
    (
        "mounts[].options",
        "all of runc's, the recursive ones (`rro`, `rnosuid`, …), `tmpcopyup`, `idmap` and `ridmap`; of a bind mount no others; \
         propagation is among the mounts of the guest, but for what the host mounts below a volume that is `slave` or `shared`; a \
         tmpfs without `mode` has that of its mount point; `ro` is the volume's own, but flags like `nosuid` hold for what is \
         mounted below its source, too; `rw`, where it is written, lets a volume be written to whose source the host has mounted `ro`, \
         unless that is locked; `noatime` and the like are shown in the guest, but it is the host that writes times of access, as its \
         own mount says",
    ),
    ("process.capabilities", "a name that nobody knows is left out, with a warning"),
    ("process.execCPUAffinity", "numbers of the guest's CPUs"),
    (
        "linux.namespaces[].path",
        "of a container of the same sandbox: shared with it; of a network: joined on the host; any other is refused",
    ),
    (
        "linux.namespaces[].type",
        "without `pid`, `ipc` or `network` the host's would be meant: refused; without `uts` and `cgroup` the guest's are taken",
    ),
    (
        "linux.uidMappings",
        "in the guest; root of the container may open every port there, as it could in a network namespace of its own",
    ),
    (
        "linux.devices",
        "a node for a device that the guest has, or that nobody has; one that only the host has is refused; where every device is \
         allowed (`--privileged`), those of the host that the guest has are made",
    ),
    (
        "linux.resources.pids.limit",
        "0 asks for nothing, as runc up to 1.3 has it, and -1 for no limit",
    ),
    (
        "linux.sysctl",
        "any of the guest's kernel, also those that are not of a namespace, but `kernel.hostname`, which has a field of its own; \
         those of the network are set in its namespace on the host, too, as far as that has them, unless it is the \
         host's own or somebody else's",
    ),
    (
        "linux.rootfsPropagation",
        "of the container's root itself and, with `r`, of all below; nothing reaches the host",
    ),
    (
        "linux.seccomp",
        "SCMP_ACT_NOTIFY is refused; `socket(AF_VSOCK)` does not exist, whatever a filter says",
    ),
];

/// Text of `docs/oci.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# The OCI runtime specification, field by field\n\n\
         What becomes of each field of `config.json`, up to version 1.3. **Applied**: the guest does it as a host would.\n\
         **Translated**: it is honoured another way. **Host only**: it is about the host, or means nothing to a VM.\n\
         **Refused**: `create` fails and names it. A field that is in no row is ignored, as the specification demands;\n\
         `kata-runtime explain BUNDLE` lists those, too, and says all of this of one bundle.\n\n\
         This page is written from the code (`cargo test -p kata-spec` compares them).\n\n\
         | field | | |\n|---|---|---|\n",
    );
    // A String takes everything that is written to it.
    for Explained { field, treatment, detail } in rows() {
        writeln!(text, "| `{field}` | {treatment} | {detail} |").ok();
    }
    text.push_str("\n## Rules\n\n| field | |\n|---|---|\n");
    for (field, rule) in RULES {
        writeln!(text, "| `{field}` | {rule} |").ok();
    }
    text
}
