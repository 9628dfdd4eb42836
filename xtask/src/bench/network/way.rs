//! How frames get from the pod's link to its guest: as Kata lays the way, or as a person would by hand. All end in the same
//! VMM with the same card.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use kata_sys::tap;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, open};
use serde_json::json;

use super::super::bare::{BareVm, Prepared};
use super::super::container::{Container, Source};
use super::super::patience;
use super::super::stand::Stand;
use super::super::vmm_line::VmmLine;
use super::scene::{LINK, Scene, V4, V6};

pub const SERVE: &[&str] = &["serve"];
const TAP: &str = "tap0";

/// Sends every frame that comes in on one link out of the other.
const REDIRECT: &str = "protocol all u32 match u8 0 0 action mirred egress redirect dev";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A container of Kata, with defaults.
    Kata,
    /// A container of Kata whose frames go by its eBPF programs: loaded by hand they would be the same.
    Ebpf,
    /// tc's u32 filter between link and tap.
    U32,
    /// Link and tap in a bridge.
    Bridge,
    /// The VMM on a macvtap over the link.
    Macvtap,
    /// A container without a VM.
    Runc,
}

impl Way {
    pub const ALL: [Self; 6] =
        [Self::Kata, Self::Ebpf, Self::U32, Self::Bridge, Self::Macvtap, Self::Runc];

    /// What Kata has to keep up with.
    pub const BY_HAND: [Self; 4] = [Self::Ebpf, Self::U32, Self::Bridge, Self::Macvtap];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kata => "kata",
            Self::Ebpf => "eBPF redirect",
            Self::U32 => "u32 redirect",
            Self::Bridge => "bridge",
            Self::Macvtap => "macvtap",
            Self::Runc => "runc",
        }
    }

    /// Whether the pod's link has addresses: a bare guest sets its own.
    pub fn is_addressed(self) -> bool {
        matches!(self, Self::Kata | Self::Ebpf | Self::Runc)
    }
}

/// One who serves.
pub enum Served<'a> {
    Container(Container<'a>),
    Bare(BareVm),
    Runc(Runc),
}

/// A container of runc; killed when dropped.
pub struct Runc {
    child: Child,
    root: PathBuf,
    id: String,
}

impl<'a> Served<'a> {
    /// Lays the way, and starts who is at its end; the one who asks waits until that one serves.
    pub fn start(stand: &'a Stand, line: &VmmLine, scene: &Scene, way: Way) -> Result<Self> {
        let bundle = || {
            stand.bundle(way.name(), SERVE, |spec| {
                scene.enter(spec);
                if way == Way::Ebpf {
                    spec["annotations"]["io.katacontainers.network.model"] = json!("ebpf");
                }
            })
        };
        let card = match way {
            Way::Kata | Way::Ebpf => {
                let container = Container::start(stand, Source::Bundle(&bundle()?))?;
                patience::read(&container.stdout, &mut [0], "the word that it serves")?;
                return Ok(Self::Container(container));
            }
            Way::Runc => {
                return Ok(Self::Runc(Runc::start(stand, &bundle()?)?));
            }
            Way::U32 => {
                let card = make_tap(scene)?;
                for (from, to) in [(LINK, TAP), (TAP, LINK)] {
                    scene.tc(&format!("qdisc add dev {from} ingress"))?;
                    scene.tc(&format!("filter add dev {from} parent ffff: {REDIRECT} {to}"))?;
                }
                card
            }
            Way::Bridge => {
                let card = make_tap(scene)?;
                scene.ip(&["link", "add", "br0", "type", "bridge"])?;
                for link in [LINK, TAP] {
                    scene.ip(&["link", "set", link, "master", "br0"])?;
                }
                scene.ip(&["link", "set", "br0", "up"])?;
                card
            }
            Way::Macvtap => make_macvtap(stand, scene, line.mac()?)?,
        };
        let line = line.clone().with_task(&format!("serve,{V4},{V6}"));
        let vm = Prepared::new(stand, &line)?.boot_with(stand, Some(&card))?;
        patience::read_line(&vm.console, "serving").with_context(|| vm.log(stand))?;
        Ok(Self::Bare(vm))
    }

    pub fn finish(self) -> Result<()> {
        match self {
            // It serves for ever: dropped it is killed.
            Self::Container(container) => container.kill(),
            Self::Bare(vm) => {
                drop(vm);
                Ok(())
            }
            Self::Runc(mut runc) => match runc.child.try_wait().context("look at runc")? {
                Some(status) => bail!("runc ended with {status}"),
                None => Ok(()),
            },
        }
    }
}

fn make_tap(scene: &Scene) -> Result<OwnedFd> {
    let tap = scene.inside(|| tap::make(TAP, 1).context("make a tap"))?;
    scene.ip(&["link", "set", TAP, "up"])?;
    tap.queues.into_iter().next().context("a tap without queues")
}

fn make_macvtap(stand: &Stand, scene: &Scene, mac: &str) -> Result<OwnedFd> {
    let add = ["link", "add", "link", LINK, "name", TAP, "address", mac, "type", "macvtap"];
    scene.ip(&[&add[..], &["mode", "bridge"]].concat())?;
    // The VMM does not tell it which groups the guest listens to, and neighbours of IPv6 ask a group.
    scene.ip(&["link", "set", TAP, "allmulticast", "on", "up"])?;
    // The number of its device is in the `/sys` of its namespace alone.
    let number = scene.said(&["sh", "-c", &format!("cat /sys/class/net/{TAP}/tap*/dev")])?;
    let (major, minor) = number.trim().split_once(':').context("no number of a macvtap")?;
    let device = makedev(major.parse()?, minor.parse()?);
    let node = stand.place("macvtap");
    mknodat(rustix::fs::CWD, &node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)
        .with_context(|| format!("make {}", node.display()))?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = open(&node, flags, Mode::empty()).context("open a macvtap");
    fs::remove_file(&node).with_context(|| format!("remove {}", node.display()))?;
    opened
}

impl Runc {
    fn start(stand: &Stand, bundle: &Path) -> Result<Self> {
        let (root, id) = (stand.place("runc"), format!("kb-{}", std::process::id()));
        let mut command = Command::new("runc");
        command.arg("--root").arg(&root).args(["run", "--bundle"]).arg(bundle).arg(&id);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn().context("start runc")?, root, id })
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&self.root).args(["delete", "--force", &self.id]);
        if let Err(error) = command.status().and_then(|_| self.child.wait()) {
            eprintln!("xtask: delete a container of runc: {error}");
        }
    }
}
