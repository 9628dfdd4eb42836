//! What the host has to have, each proven by using it.

use std::{
    fs::{self, OpenOptions},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// How a facility is shown to be there.
enum Proof {
    /// The device opens for reading and writing.
    Device(&'static str),
    /// A link of this kind can be made, with these further words to ip(8).
    Link(&'static [&'static str]),
    /// A function of its own.
    Shown(fn() -> Result<()>),
}

/// name, module, proof.
type Facility = (&'static str, &'static str, Proof);

/// The link that others are made upon.
const LOWER: &str = "probe-lower";
const UPPER: &str = "probe-upper";

const FACILITIES: &[Facility] = &[
    ("cgroup v2 alone", "", Proof::Shown(cgroups)),
    ("all capabilities", "", Proof::Shown(capabilities)),
    ("KVM", "kvm_amd", Proof::Device("/dev/kvm")),
    ("vhost-vsock", "vhost_vsock", Proof::Device("/dev/vhost-vsock")),
    ("vhost-net", "vhost_net", Proof::Device("/dev/vhost-net")),
    ("tun", "tun", Proof::Device("/dev/net/tun")),
    ("device-mapper", "dm_mod", Proof::Device("/dev/mapper/control")),
    ("loop", "loop", Proof::Device("/dev/loop-control")),
    ("overlay", "overlay", Proof::Shown(overlay)),
    ("dummy", "dummy", Proof::Link(&["type", "dummy"])),
    ("veth", "veth", Proof::Link(&["type", "veth", "peer", "name", "probe-peer"])),
    ("bridge", "bridge", Proof::Link(&["type", "bridge"])),
    ("bond", "bonding", Proof::Link(&["type", "bond"])),
    ("VLAN", "8021q", Proof::Link(&["link", LOWER, "type", "vlan", "id", "7"])),
    ("ipvlan", "ipvlan", Proof::Link(&["link", LOWER, "type", "ipvlan", "mode", "l2"])),
    ("macvlan", "macvlan", Proof::Link(&["link", LOWER, "type", "macvlan"])),
    ("WireGuard", "wireguard", Proof::Link(&["type", "wireguard"])),
    ("netkit", "", Proof::Link(&["type", "netkit"])),
    ("macvtap", "macvtap", Proof::Link(&["link", LOWER, "type", "macvtap"])),
];

/// Each facility, and why it is not there.
pub fn look() -> Vec<(&'static str, Result<()>)> {
    let lower = prepare().err();
    let mut found = Vec::new();
    for (name, module, proof) in FACILITIES {
        found.push((*name, load(module).and_then(|()| prove(proof))));
    }
    if let Some(why) = lower {
        found.push(("links", Err(why)));
    }
    found
}

/// The loopback is up, and there is a link for others to be made upon. `bonding` makes a link of its own accord, which no
/// test expects.
fn prepare() -> Result<()> {
    load("dummy")?;
    fs::create_dir_all("/etc/modprobe.d").context("make /etc/modprobe.d")?;
    fs::write("/etc/modprobe.d/nested.conf", "options bonding max_bonds=0\n")
        .context("write the options of modules")?;
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", LOWER, "type", "dummy"])
}

fn load(module: &str) -> Result<()> {
    if module.is_empty() {
        return Ok(());
    }
    run(Command::new("modprobe").arg(module))
}

fn prove(proof: &Proof) -> Result<()> {
    match proof {
        Proof::Device(path) => OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(drop)
            .with_context(|| format!("open {path}")),
        Proof::Link(words) => {
            // `link PARENT` comes before the name, the type after it.
            let (parent, kind) = match words {
                ["link", parent, kind @ ..] => (vec!["link", parent], kind),
                kind => (Vec::new(), *kind),
            };
            ip(&[&["link", "add"], parent.as_slice(), &["name", UPPER], kind].concat())?;
            ip(&["link", "delete", UPPER])
        }
        Proof::Shown(show) => show(),
    }
}

fn cgroups() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let kinds = mounts.lines().filter_map(|line| line.split(' ').nth(2));
    let kinds: Vec<&str> = kinds.filter(|kind| kind.starts_with("cgroup")).collect();
    ensure!(kinds == ["cgroup2"], "mounted are {kinds:?}");
    Ok(())
}

fn capabilities() -> Result<()> {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").context("read cap_last_cap")?;
    let last: u32 = last.trim().parse().context("understand cap_last_cap")?;
    let status = fs::read_to_string("/proc/self/status").context("read the status")?;
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(held.context("no CapEff")?.trim(), 16).context("CapEff")?;
    let all = u64::MAX >> (63 - last);
    ensure!(held == all, "held are {held:#x}, all are {all:#x}");
    Ok(())
}

fn overlay() -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").context("read the file systems")?;
    ensure!(known.lines().any(|line| line.ends_with("\toverlay")), "the kernel has none");
    Ok(())
}

fn ip(words: &[&str]) -> Result<()> {
    run(Command::new("ip").args(words))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
