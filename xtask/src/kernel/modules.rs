//! Which modules of a packaged kernel the guest loads, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Result, bail};

/// What a guest needs from a kernel that has it as modules. Everything here is loaded at boot, as nothing in the guest
/// can load more later. `vsock_loopback` is absent on purpose: no process of a guest may dial the agent.
pub const WANTED: &[&str] = &[
    // The devices of both machine types.
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "ptp_kvm",
    "pvpanic_mmio",
    "pvpanic_pci",
    // File systems.
    "overlay",
    "ext4",
    "erofs",
    "loop",
    "binfmt_misc",
    // A container's own network.
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "dummy",
    "macvlan",
    "ipvlan",
    "vxlan",
    "8021q",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_compat",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_redir",
    "nft_reject_inet",
    "nf_conntrack_netlink",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "iptable_raw",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "ip6table_raw",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_tcpudp",
];

/// The modules of one kernel: `modules.dep` and `modules.builtin`, by name.
#[derive(Debug)]
pub struct Available {
    files: BTreeMap<String, (PathBuf, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Available {
    /// Reads the two texts, as depmod(8) and the kernel's build write them.
    pub fn parse(dependencies: &str, builtin: &str) -> Self {
        let mut files = BTreeMap::new();
        for line in dependencies.lines() {
            let Some((file, needed)) = line.split_once(':') else { continue };
            let needed = needed.split_whitespace().map(name_of).collect();
            files.insert(name_of(file), (PathBuf::from(file), needed));
        }
        Self { files, builtin: builtin.lines().map(name_of).collect() }
    }

    /// The files of `wanted` and of all that they need, each after what it needs. What is built in needs no file.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        let absent: Vec<&str> = wanted.iter().copied().filter(|name| !self.has(name)).collect();
        if !absent.is_empty() {
            bail!("the packaged kernel has no {}", absent.join(", "));
        }
        for name in wanted {
            self.visit(name, &mut seen, &mut order);
        }
        Ok(order)
    }

    fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.files.contains_key(name)
    }

    fn visit<'a>(&'a self, name: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<PathBuf>) {
        let Some((file, needed)) = self.files.get(name) else { return };
        if !seen.insert(name) {
            return;
        }
        for needed in needed {
            self.visit(needed, seen, order);
        }
        order.push(file.clone());
    }
}

/// `kernel/drivers/net/virtio-net.ko.xz` is the module `virtio_net`.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/net/vsock.ko.xz:
kernel/net/transport-common.ko.xz: kernel/net/vsock.ko.xz
kernel/net/transport.ko.xz: kernel/net/transport-common.ko.xz kernel/net/vsock.ko.xz
kernel/fs/overlay.ko.xz:
";

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        let available = Available::parse(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n");
        let files = available.load_order(wanted)?;
        Ok(files.iter().map(|file| name_of(file.to_str().unwrap())).collect())
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let made = order(&["transport", "overlay", "vsock"]).unwrap();
        assert_eq!(made, ["vsock", "transport_common", "transport", "overlay"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        assert_eq!(order(&["ext4"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_absent_module_is_named() {
        let error = order(&["overlay", "nosuch"]).unwrap_err().to_string();
        assert_eq!(error, "the packaged kernel has no nosuch");
    }
}
