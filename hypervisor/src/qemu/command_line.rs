//! QEMU's command line: one type an option, rendered here and nowhere else.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};
use serde_json::json;

use super::{files::Files, launch::Descriptors};
use crate::{Accelerator, Access, HypervisorError, MachineType, VmConfig};

/// All that can be emulated, but for the promises that `rep movsb` is fast: a translator takes it byte by byte, and without
/// them the kernel copies by words. A container's output was seen to pass twice as fast (395 against 216 MB/s).
const EMULATED_CPU: &str = "max,-erms,-fsrm";

/// Code cache of the translator; only what is used of it takes memory. A boot with its first container overflows 32 MiB,
/// and then everything is translated again; a much larger one would grow with every program that the guest ever runs.
const TRANSLATED_MIB: u32 = 64;

/// The smallest guest in which kernel and agent come up.
const LEAST_MEMORY_MIB: u32 = 48;

/// Longest names that fit into the devices' configuration space.
const TAG: usize = 36;
const SERIAL: usize = 20;

/// Sockets of the driver itself.
pub(super) struct Sockets {
    pub(super) qmp: OwnedFd,
    pub(super) console: OwnedFd,
}

/// Refuses what QEMU would refuse later and less clearly.
pub(super) fn check(config: &VmConfig) -> Result<(), HypervisorError> {
    let refused = |message: String| Err(HypervisorError::Unsupported(message));
    if config.memory.0 < LEAST_MEMORY_MIB {
        return refused(format!(
            "{} of guest memory are less than the {LEAST_MEMORY_MIB} MiB that a guest needs to boot",
            config.memory
        ));
    }
    let devices = config.virtio_devices();
    if config.machine == MachineType::Microvm && devices > MachineType::MICROVM_SLOTS {
        return refused(format!(
            "{devices} virtio devices are more than the {} that microvm has room for",
            MachineType::MICROVM_SLOTS
        ));
    }
    let names = |name: &str, most| name.is_empty() || name.len() > most;
    if let Some(share) = config.shares.iter().find(|share| names(&share.tag, TAG)) {
        return refused(format!("tag {:?} of a share is not of 1 to {TAG} bytes", share.tag));
    }
    if let Some(disk) = config.disks.iter().find(|disk| names(&disk.serial, SERIAL)) {
        return refused(format!(
            "serial {:?} of a disk is not of 1 to {SERIAL} bytes",
            disk.serial
        ));
    }
    Ok(())
}

/// All arguments but the program's name. Descriptors go over to `descriptors`.
pub(super) fn render(
    config: VmConfig,
    files: &Files,
    sockets: Sockets,
    descriptors: &mut Descriptors,
) -> Result<Vec<String>, HypervisorError> {
    let mut line = Line::default();
    line.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
    line.option("-display", "none");
    // Before anything else is parsed that could do what it denies.
    line.option("-sandbox", SANDBOX);
    if let Some(directory) = &files.firmware {
        line.option("-L", directory.display());
    }
    platform(&mut line, &config);
    line.option("-kernel", files.kernel.display());
    line.option("-initrd", files.initrd.display());
    line.option("-append", kernel_command_line(&config));
    let qmp = Chardev { id: "qmp", fd: descriptors.add(sockets.qmp) };
    line.option("-chardev", qmp.render()).option("-mon", "chardev=qmp,mode=control");
    let console = Chardev { id: "console", fd: descriptors.add(sockets.console) };
    line.option("-chardev", console.render()).option("-serial", "chardev:console");
    devices(&mut line, config, descriptors)?;
    Ok(line.0)
}

const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn option(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.to_string());
        self
    }
}

/// `first,key=value,…`; a comma in a value is doubled, as QEMU wants it.
struct Properties(String);

impl Properties {
    fn new(first: &str) -> Self {
        Self(first.into())
    }

    fn with(mut self, key: &str, value: impl ToString) -> Self {
        let value = value.to_string().replace(',', ",,");
        self.0.push_str(&format!(",{key}={value}"));
        self
    }

    fn off(self, keys: &[&str]) -> Self {
        keys.iter().fold(self, |properties, key| properties.with(key, "off"))
    }
}

/// Machine, accelerator, processors and memory.
fn platform(line: &mut Line, config: &VmConfig) {
    let machine = match config.machine {
        // PIC, PIT and the RTC's clock make a TCG guest's timer calibration three times as fast as going without.
        MachineType::Microvm => Properties::new("microvm")
            .off(&["acpi", "pcie", "usb"])
            .with("pic", "on")
            .with("pit", "on")
            .with("rtc", "on")
            .with("isa-serial", "on"),
        MachineType::Q35 => Properties::new("q35")
            .off(&["smm", "vmport", "sata", "smbus", "i8042", "hpet", "usb", "graphics"]),
    };
    line.option("-machine", machine.with("memory-backend", "memory").0);
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => (Properties::new("kvm"), "host"),
        Accelerator::Tcg => (
            Properties::new("tcg").with("thread", "multi").with("tb-size", TRANSLATED_MIB),
            EMULATED_CPU,
        ),
    };
    line.option("-accel", accelerator.0).option("-cpu", cpu).option("-smp", config.vcpus);
    let size = format!("{}M", config.memory.0);
    let memory = Properties::new("memory-backend-memfd")
        .with("id", "memory")
        .with("size", &size)
        .with("share", "on");
    line.option("-m", size).option("-object", memory.0);
    if config.machine == MachineType::Microvm {
        // The virtio-mmio of QEMU's default speaks a draft that vsock and virtio-fs do not.
        line.option("-global", "virtio-mmio.force-legacy=off");
    }
}

/// What the supervisor relies on: the console where it listens, and a panic that ends in a reset at once, by the one
/// way that every machine has (a triple fault).
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet panic=-1 reboot=t";

fn kernel_command_line(config: &VmConfig) -> String {
    let mut line = KERNEL_PARAMETERS.to_owned();
    if let (Accelerator::Tcg, Some(khz)) = (config.accelerator, config.tsc_khz) {
        line.push_str(&format!(" tsc_early_khz={khz}"));
    }
    if !config.command_line.is_empty() {
        line.push(' ');
        line.push_str(&config.command_line);
    }
    line
}

struct Chardev<'a> {
    id: &'a str,
    fd: usize,
}

impl Chardev<'_> {
    fn render(&self) -> String {
        Properties::new("socket").with("id", self.id).with("fd", self.fd).0
    }
}

/// A virtio device, named by the transport of the machine.
struct Device {
    properties: Properties,
}

impl Device {
    fn new(kind: &str, machine: MachineType) -> Self {
        let transport = match machine {
            MachineType::Microvm => "device",
            MachineType::Q35 => "pci",
        };
        Self { properties: Properties::new(&format!("{kind}-{transport}")) }
    }

    fn with(self, key: &str, value: impl ToString) -> Self {
        Self { properties: self.properties.with(key, value) }
    }
}

fn devices(
    line: &mut Line,
    config: VmConfig,
    descriptors: &mut Descriptors,
) -> Result<(), HypervisorError> {
    let machine = config.machine;
    if machine == MachineType::Q35 {
        line.option("-device", "pvpanic-pci");
    }
    line.option("-object", Properties::new("rng-builtin").with("id", "random").0);
    let random = Device::new("virtio-rng", machine).with("rng", "random");
    line.option("-device", random.properties.0);
    if let Some(vsock) = config.vsock {
        let chardev = Chardev { id: "vsock", fd: descriptors.add(vsock.socket) };
        line.option("-chardev", chardev.render());
        let device = Device::new("vhost-user-vsock", machine).with("chardev", "vsock");
        line.option("-device", device.properties.0);
    }
    for (number, share) in config.shares.into_iter().enumerate() {
        let id = format!("share{number}");
        line.option("-chardev", Chardev { id: &id, fd: descriptors.add(share.socket) }.render());
        let device = Device::new("vhost-user-fs", machine).with("chardev", &id);
        line.option("-device", device.with("tag", &share.tag).properties.0);
    }
    for (number, nic) in config.nics.into_iter().enumerate() {
        let id = format!("nic{number}");
        let tap = Properties::new("tap").with("id", &id).with("fd", descriptors.add(nic.tap));
        line.option("-netdev", tap.with("vhost", "off").0);
        let mut device = Device::new("virtio-net", machine)
            .with("netdev", &id)
            .with("mac", nic.mac)
            .with("host_mtu", nic.mtu);
        if machine == MachineType::Q35 {
            // Else QEMU opens a boot ROM that nobody boots from.
            device = device.with("romfile", "");
        }
        line.option("-device", device.properties.0);
    }
    for (number, disk) in config.disks.into_iter().enumerate() {
        let id = format!("disk{number}");
        let read_only = disk.access == Access::ReadOnly;
        let driver = backend(&disk.file)?;
        // Numbers of fdsets are ours to choose.
        let set = Properties(format!("fd={}", descriptors.add(disk.file))).with("set", number);
        line.option("-add-fd", set.0);
        let node = json!({
            "node-name": id,
            "driver": "raw",
            "read-only": read_only,
            "file": { "driver": driver, "filename": format!("/dev/fdset/{number}"), "aio": "threads" },
        });
        line.option("-blockdev", node);
        let device = Device::new("virtio-blk", machine).with("drive", &id);
        line.option("-device", device.with("serial", &disk.serial).properties.0);
    }
    Ok(())
}

fn backend(file: &OwnedFd) -> Result<&'static str, HypervisorError> {
    let stat = fstat(file)
        .map_err(|source| HypervisorError::Prepare { what: "a disk", source: source.into() })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok("file"),
        FileType::BlockDevice => Ok("host_device"),
        other => Err(HypervisorError::Unsupported(format!("a disk can't be a {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use super::{EMULATED_CPU, KERNEL_PARAMETERS, Properties, Sockets, check, render};
    use crate::{
        Accelerator, Access, Disk, MacAddress, MachineType, MemoryMib, Nic, Share, VmConfig, Vsock,
        qemu::{files::Files, launch::Descriptors},
    };

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn config(machine: MachineType) -> VmConfig {
        VmConfig {
            machine,
            command_line: "kata.nonce=00".into(),
            tsc_khz: Some(2_500_000),
            vsock: Some(Vsock { socket: null() }),
            shares: vec![Share { tag: "roots".into(), socket: null() }],
            nics: vec![Nic { tap: null(), mac: MacAddress([2, 0, 0, 0, 0, 0xff]), mtu: 1500 }],
            ..VmConfig::new("kernel".into(), "initrd".into())
        }
    }

    fn rendered(config: VmConfig) -> Vec<String> {
        let mut descriptors = Descriptors::test(5);
        let files = Files {
            kernel: "/guest/kernel".into(),
            initrd: "/guest/initrd".into(),
            firmware: Some("/firmware".into()),
            jailed: Vec::new(),
        };
        let sockets = Sockets { qmp: null(), console: null() };
        render(config, &files, sockets, &mut descriptors).unwrap()
    }

    fn values<'a>(line: &'a [String], flag: &str) -> Vec<&'a str> {
        line.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn devices_are_on_the_bus_of_the_machine() {
        let line = rendered(config(MachineType::Microvm));
        assert_eq!(
            values(&line, "-device"),
            [
                "virtio-rng-device,rng=random",
                "vhost-user-vsock-device,chardev=vsock",
                "vhost-user-fs-device,chardev=share0,tag=roots",
                "virtio-net-device,netdev=nic0,mac=02:00:00:00:00:ff,host_mtu=1500",
            ]
        );
        let line = rendered(config(MachineType::Q35));
        assert_eq!(
            values(&line, "-device"),
            [
                "pvpanic-pci",
                "virtio-rng-pci,rng=random",
                "vhost-user-vsock-pci,chardev=vsock",
                "vhost-user-fs-pci,chardev=share0,tag=roots",
                "virtio-net-pci,netdev=nic0,mac=02:00:00:00:00:ff,host_mtu=1500,romfile=",
            ]
        );
    }

    #[test]
    fn descriptors_are_numbered_as_they_are_handed_over() {
        let line = rendered(config(MachineType::Microvm));
        let chardevs = values(&line, "-chardev");
        let expected = ["qmp,fd=5", "console,fd=6", "vsock,fd=7", "share0,fd=8"];
        assert_eq!(chardevs, expected.map(|end| format!("socket,id={end}")));
        assert_eq!(values(&line, "-netdev"), ["tap,id=nic0,fd=9,vhost=off"]);
    }

    #[test]
    fn only_an_emulated_guest_is_told_the_tsc() {
        let emulated = rendered(config(MachineType::Microvm));
        let line = format!("{KERNEL_PARAMETERS} tsc_early_khz=2500000 kata.nonce=00");
        assert_eq!(values(&emulated, "-append"), [line]);
        assert_eq!(values(&emulated, "-cpu"), [EMULATED_CPU]);
        let accelerator = Accelerator::Kvm;
        let native = rendered(VmConfig { accelerator, ..config(MachineType::Microvm) });
        let line = format!("{KERNEL_PARAMETERS} kata.nonce=00");
        assert_eq!(values(&native, "-append"), [line]);
        assert_eq!(
            (values(&native, "-accel"), values(&native, "-cpu")),
            (vec!["kvm"], vec!["host"])
        );
    }

    #[test]
    fn a_comma_in_a_value_adds_no_property() {
        let properties = Properties::new("x").with("tag", "a,readonly=on");
        assert_eq!(properties.0, "x,tag=a,,readonly=on");
    }

    #[test]
    fn a_disk_is_an_fdset() {
        let image = tempfile::tempfile().unwrap();
        let disk = Disk { file: image.into(), access: Access::ReadOnly, serial: "layer".into() };
        let line = rendered(VmConfig { disks: vec![disk], ..config(MachineType::Microvm) });
        assert_eq!(values(&line, "-add-fd"), ["fd=10,set=0"]);
        let node: serde_json::Value = serde_json::from_str(values(&line, "-blockdev")[0]).unwrap();
        assert_eq!(node["file"]["filename"], "/dev/fdset/0");
        assert_eq!(node["read-only"], true);
        let devices = values(&line, "-device");
        assert_eq!(devices.last(), Some(&"virtio-blk-device,drive=disk0,serial=layer"));
    }

    #[test]
    fn what_the_machine_lacks_is_refused_by_name() {
        let refused = |config| check(&config).unwrap_err().to_string();
        let shares = (0..8).map(|_| Share { tag: "x".into(), socket: null() }).collect();
        let crowded = refused(VmConfig { shares, ..config(MachineType::Microvm) });
        assert!(crowded.starts_with("11 virtio devices"), "{crowded}");
        let small = refused(VmConfig { memory: MemoryMib(16), ..config(MachineType::Q35) });
        assert!(small.starts_with("16 MiB of guest memory"), "{small}");
        let shares = vec![Share { tag: "x".repeat(37), socket: null() }];
        assert!(refused(VmConfig { shares, ..config(MachineType::Q35) }).starts_with("tag"));
        assert!(check(&config(MachineType::Microvm)).is_ok());
    }
}
