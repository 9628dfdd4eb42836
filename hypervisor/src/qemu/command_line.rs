//! QEMU's command line: one type an option, rendered here and nowhere else.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};
use serde_json::json;

use super::{files::Files, hotplug, launch::Descriptors};
use crate::{Accelerator, Access, HypervisorError, MachineType, Nic, Pages, VmConfig};

/// All that can be emulated, but for the promises that `rep movsb` is fast: a translator takes it byte by byte, and without
/// them the kernel copies by words. A container's output was seen to pass twice as fast (395 against 216 MB/s).
const EMULATED_CPU: &str = "max,-erms,-fsrm";

/// The host's processor, without its own virtualisation and its counters of events: guests have no use for them, and they are code of
/// the host's kernel that a hostile one would look for mistakes in.
const NATIVE_CPU: &str = "host,vmx=off,svm=off,pmu=off";

/// Code cache of the translator; only what is used of it takes memory. A boot with its first container overflows 32 MiB,
/// and then everything is translated again; a much larger one would grow with every program that the guest ever runs.
const TRANSLATED_MIB: u32 = 64;

/// The smallest guest in which kernel and agent come up.
const LEAST_MEMORY_MIB: u32 = 48;

/// Longest names that fit into the devices' configuration space.
const TAG: usize = 36;
const SERIAL: usize = 20;

/// The functions of one slot, each a root port; what the machine itself has there is in the last one.
const PORTS: usize = 8;
const PORTS_SLOT: &str = "1e";

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
    let granularity = config.pages.granularity();
    if !config.memory.0.is_multiple_of(granularity.0) {
        return refused(format!(
            "{} of guest memory are no multiple of {granularity}, the size of its pages",
            config.memory
        ));
    }
    if config.accelerator == Accelerator::Tcg
        && config.nics.iter().any(|nic| !nic.vhosts.is_empty())
    {
        return refused("vhost-net serves guests under KVM only".into());
    }
    let uneven =
        |nic: &&Nic| nic.taps.is_empty() || ![0, nic.taps.len()].contains(&nic.vhosts.len());
    if let Some(Nic { taps, vhosts, .. }) = config.nics.iter().find(uneven) {
        return refused(format!(
            "a card with {} queues and {} descriptors of vhost-net",
            taps.len(),
            vhosts.len()
        ));
    }
    let devices = config.virtio_devices();
    if config.machine == MachineType::Microvm && devices > MachineType::MICROVM_SLOTS {
        return refused(format!(
            "{devices} virtio devices are more than the {} that microvm has room for",
            MachineType::MICROVM_SLOTS
        ));
    }
    let ports = match config.machine {
        MachineType::Microvm => 0,
        MachineType::Q35 => PORTS,
    };
    if config.nic_ports > ports {
        return refused(format!(
            "{} cards can't be added to a running {:?}",
            config.nic_ports, config.machine
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
    line.option("-machine", machine(config).with("memory-backend", "memory").0);
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => (Properties::new("kvm"), NATIVE_CPU),
        Accelerator::Tcg => (
            Properties::new("tcg").with("thread", "multi").with("tb-size", TRANSLATED_MIB),
            EMULATED_CPU,
        ),
    };
    line.option("-accel", accelerator.0).option("-cpu", cpu).option("-smp", config.vcpus);
    let size = format!("{}M", config.memory.0);
    let mut memory = Properties::new("memory-backend-memfd")
        .with("id", "memory")
        .with("size", &size)
        .with("share", "on");
    if config.pages == Pages::Huge {
        memory = memory.with("hugetlb", "on").with("hugetlbsize", "2M");
    }
    line.option("-m", size).option("-object", memory.0);
    if config.machine == MachineType::Microvm {
        // The virtio-mmio of QEMU's default speaks a draft that vsock and virtio-fs do not.
        line.option("-global", "virtio-mmio.force-legacy=off");
    }
}

fn machine(config: &VmConfig) -> Properties {
    match (config.machine, config.accelerator) {
        // PIC, PIT and the RTC's clock make a TCG guest's timer calibration three times as fast as going without.
        (MachineType::Microvm, Accelerator::Tcg) => Properties::new("microvm")
            .off(&["acpi", "pcie", "usb"])
            .with("pic", "on")
            .with("pit", "on")
            .with("rtc", "on")
            .with("isa-serial", "on"),
        // Time is kvm-clock's, so nothing is calibrated; interrupts are the IO-APIC's.
        (MachineType::Microvm, Accelerator::Kvm) => Properties::new("microvm")
            .off(&["acpi", "pcie", "usb", "pic", "pit", "rtc"])
            .with("isa-serial", "on"),
        (MachineType::Q35, _) => Properties::new("q35")
            .off(&["smm", "vmport", "sata", "smbus", "i8042", "hpet", "usb", "graphics"]),
    }
}

/// What the supervisor relies on: the console where it listens, and a panic that ends in a reset at once, by the one
/// way that every machine has (a triple fault). Errors are not shown (`quiet` shows them): some have words of a container's
/// in them, with newlines, and what would be taken for the kernel's last one ends the VM.
///
/// A guest with memory at addresses above 4 GiB would keep 64 MiB for devices that reach no further: none of a VM's is of the kind.
const KERNEL_PARAMETERS: &str = "console=ttyS0 loglevel=3 panic=-1 reboot=t swiotlb=noforce";

/// For an emulated guest. The counter is the host's own. The kernel would check it by timer interrupts, which come late
/// on a busy host, and give it up for a clock that counts those: wrong by as much as they were late. The same lateness
/// makes the kernel's test of the timer fail, upon which it panics; under KVM it does not test.
///
/// What the guest's kernel does against mistakes of its processor does nothing in code that is translated.
///
/// The emulator keeps what it translated of a page until the guest writes to the page, and sees no write of another process:
/// of what the proxy reads from a file into memory that had code in it before, the old code would be run. So the guest
/// clears each page before it is given out.
const EMULATED_PARAMETERS: &str = "tsc=reliable no_timer_check mitigations=off init_on_alloc=1";

fn kernel_command_line(config: &VmConfig) -> String {
    let mut line = KERNEL_PARAMETERS.to_owned();
    if config.accelerator == Accelerator::Tcg {
        line.push_str(&format!(" {EMULATED_PARAMETERS}"));
        if let Some(khz) = config.tsc_khz {
            line.push_str(&format!(" tsc_early_khz={khz}"));
        }
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
    for number in 0..config.nic_ports {
        let port = Properties::new("pcie-root-port")
            .with("id", hotplug::port(number))
            .with("chassis", number + 1)
            .with("addr", format!("{PORTS_SLOT}.{number}"));
        let port = if number == 0 { port.with("multifunction", "on") } else { port };
        line.option("-device", port.0);
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
        let mut device =
            Device::new("virtio-net", machine).with("netdev", &id).with("mac", nic.mac);
        let queues = nic.taps.len();
        if queues > 1 {
            device = device.with("mq", "on");
        }
        line.option("-netdev", tap(nic, &id, descriptors).0);
        if machine == MachineType::Q35 && queues > 1 {
            // One a ring, of which a queue has two, and two for the device itself.
            device = device.with("vectors", 2 * queues + 2);
        }
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
        // Engines give one device to many containers, and it is for these to agree on it.
        let locking = if driver == HOST_DEVICE { "off" } else { "auto" };
        let node = json!({
            "node-name": id,
            "driver": "raw",
            "read-only": read_only,
            "file": { "driver": driver, "filename": format!("/dev/fdset/{number}"), "aio": "threads",
                "locking": locking },
        });
        line.option("-blockdev", node);
        let device = Device::new("virtio-blk", machine).with("drive", &id);
        line.option("-device", device.with("serial", &disk.serial).properties.0);
    }
    Ok(())
}

/// The host's end of a card: packets are moved by the kernel where it was given to us, else by QEMU.
fn tap(nic: Nic, id: &str, descriptors: &mut Descriptors) -> Properties {
    let tap = Properties::new("tap").with("id", id);
    let tap = with_each(tap, ["fd", "fds"], nic.taps, descriptors);
    match nic.vhosts.is_empty() {
        true => tap.with("vhost", "off"),
        false => {
            with_each(tap.with("vhost", "on"), ["vhostfd", "vhostfds"], nic.vhosts, descriptors)
        }
    }
}

/// One descriptor by the first key, several by the second.
fn with_each(
    properties: Properties,
    [one, several]: [&str; 2],
    fds: Vec<OwnedFd>,
    descriptors: &mut Descriptors,
) -> Properties {
    let key = if fds.len() == 1 { one } else { several };
    let numbers: Vec<String> = fds.into_iter().map(|fd| descriptors.add(fd).to_string()).collect();
    properties.with(key, numbers.join(":"))
}

/// QEMU's word for what serves a block device.
const HOST_DEVICE: &str = "host_device";

fn backend(file: &OwnedFd) -> Result<&'static str, HypervisorError> {
    let stat = fstat(file)
        .map_err(|source| HypervisorError::Prepare { what: "a disk", source: source.into() })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok("file"),
        FileType::BlockDevice => Ok(HOST_DEVICE),
        other => Err(HypervisorError::Unsupported(format!("a disk can't be a {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
