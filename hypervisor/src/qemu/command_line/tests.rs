//! Golden lines: each word that QEMU gets, for each machine and accelerator.

use std::{fs::File, os::fd::OwnedFd};

use super::{Properties, Sockets, check, render};
use crate::{
    Accelerator, Access, Disk, MacAddress, MachineType, MemoryMib, Nic, Pages, Share, VmConfig,
    Vsock,
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
        nics: vec![Nic {
            taps: vec![null()],
            mac: MacAddress([2, 0, 0, 0, 0, 0xff]),
            vhosts: Vec::new(),
        }],
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

/// All words of a line, in order.
fn golden(machine: MachineType, accelerator: Accelerator) -> String {
    let mut config = VmConfig { accelerator, ..config(machine) };
    if accelerator == Accelerator::Kvm {
        config.nics[0].vhosts = vec![null()];
    }
    rendered(config).join(" ")
}

const FIRST: &str = "-nodefaults -no-user-config -no-reboot -display none -sandbox \
    on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -L /firmware -machine ";
const MEMORY: &str = " -smp 1 -m 128M -object memory-backend-memfd,id=memory,size=128M,share=on";
const GUEST: &str = " -kernel /guest/kernel -initrd /guest/initrd -append console=ttyS0 loglevel=3 panic=-1 reboot=t \
    swiotlb=noforce ";
const SOCKETS: &str = "kata.nonce=00 -chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control \
    -chardev socket,id=console,fd=6 -serial chardev:console ";
const EMULATED: &str = "-accel tcg,thread=multi,tb-size=64 -cpu max,-erms,-fsrm";
const NATIVE: &str = "-accel kvm -cpu host,vmx=off,svm=off,pmu=off";
const CLOCK: &str =
    "tsc=reliable no_timer_check mitigations=off init_on_alloc=1 tsc_early_khz=2500000 ";

const MMIO: &str = "-object rng-builtin,id=random -device virtio-rng-device,rng=random \
    -chardev socket,id=vsock,fd=7 -device vhost-user-vsock-device,chardev=vsock \
    -chardev socket,id=share0,fd=8 -device vhost-user-fs-device,chardev=share0,tag=roots ";
const MMIO_CARD: &str = "-device virtio-net-device,netdev=nic0,mac=02:00:00:00:00:ff";
const PCI: &str = "-device pvpanic-pci -object rng-builtin,id=random -device virtio-rng-pci,rng=random \
    -chardev socket,id=vsock,fd=7 -device vhost-user-vsock-pci,chardev=vsock \
    -chardev socket,id=share0,fd=8 -device vhost-user-fs-pci,chardev=share0,tag=roots ";
const PCI_CARD: &str = "-device virtio-net-pci,netdev=nic0,mac=02:00:00:00:00:ff,romfile=";
const TAP: &str = "-netdev tap,id=nic0,fd=9,vhost=off ";
const VHOST_TAP: &str = "-netdev tap,id=nic0,fd=9,vhost=on,vhostfd=10 ";
const Q35: &str = "q35,smm=off,vmport=off,sata=off,smbus=off,i8042=off,hpet=off,usb=off,graphics=off,\
    memory-backend=memory ";

#[test]
fn microvm_under_tcg() {
    let machine = "microvm,acpi=off,pcie=off,usb=off,pic=on,pit=on,rtc=on,isa-serial=on,\
                   memory-backend=memory ";
    let modern = " -global virtio-mmio.force-legacy=off";
    assert_eq!(
        golden(MachineType::Microvm, Accelerator::Tcg),
        [FIRST, machine, EMULATED, MEMORY, modern, GUEST, CLOCK, SOCKETS, MMIO, TAP, MMIO_CARD]
            .concat()
    );
}

#[test]
fn microvm_under_kvm() {
    let machine = "microvm,acpi=off,pcie=off,usb=off,pic=off,pit=off,rtc=off,isa-serial=on,\
                   memory-backend=memory ";
    let modern = " -global virtio-mmio.force-legacy=off";
    assert_eq!(
        golden(MachineType::Microvm, Accelerator::Kvm),
        [FIRST, machine, NATIVE, MEMORY, modern, GUEST, SOCKETS, MMIO, VHOST_TAP, MMIO_CARD]
            .concat()
    );
}

#[test]
fn q35_under_tcg() {
    assert_eq!(
        golden(MachineType::Q35, Accelerator::Tcg),
        [FIRST, Q35, EMULATED, MEMORY, GUEST, CLOCK, SOCKETS, PCI, TAP, PCI_CARD].concat()
    );
}

#[test]
fn q35_under_kvm() {
    assert_eq!(
        golden(MachineType::Q35, Accelerator::Kvm),
        [FIRST, Q35, NATIVE, MEMORY, GUEST, SOCKETS, PCI, VHOST_TAP, PCI_CARD].concat()
    );
}

#[test]
fn huge_pages_come_from_the_hosts_pool() {
    let line = rendered(VmConfig { pages: Pages::Huge, ..config(MachineType::Microvm) });
    assert!(
        values(&line, "-object").contains(
            &"memory-backend-memfd,id=memory,size=128M,share=on,hugetlb=on,hugetlbsize=2M"
        )
    );
}

#[test]
fn a_card_with_several_queues_has_a_descriptor_and_an_interrupt_for_each() {
    let card = |machine, vhost: bool| {
        let mut config = config(machine);
        config.nics[0].taps.push(null());
        if vhost {
            config.accelerator = Accelerator::Kvm;
            config.nics[0].vhosts = vec![null(), null()];
        }
        let line = rendered(config);
        let last = |name| values(&line, name).last().map(ToString::to_string);
        (last("-netdev").unwrap(), last("-device").unwrap())
    };
    let (tap, device) = card(MachineType::Microvm, false);
    assert_eq!(tap, "tap,id=nic0,fds=9:10,vhost=off");
    assert_eq!(device, "virtio-net-device,netdev=nic0,mac=02:00:00:00:00:ff,mq=on");
    let (tap, device) = card(MachineType::Q35, true);
    assert_eq!(tap, "tap,id=nic0,fds=9:10,vhost=on,vhostfds=11:12");
    let pci = "virtio-net-pci,netdev=nic0,mac=02:00:00:00:00:ff,mq=on,vectors=6,romfile=";
    assert_eq!(device, pci);
}

#[test]
fn places_for_cards_are_functions_of_one_slot_and_on_pci_alone() {
    let line = rendered(VmConfig { nic_ports: 2, ..config(MachineType::Q35) });
    let devices = values(&line, "-device");
    assert!(
        devices.contains(&"pcie-root-port,id=port0,chassis=1,addr=1e.0,multifunction=on")
            && devices.contains(&"pcie-root-port,id=port1,chassis=2,addr=1e.1"),
        "{devices:?}"
    );
    for (machine, nic_ports) in [(MachineType::Microvm, 1), (MachineType::Q35, 9)] {
        let refused = check(&VmConfig { nic_ports, ..config(machine) }).unwrap_err().to_string();
        assert!(refused.contains("can't be added to a running"), "{refused}");
    }
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
    let odd = VmConfig { memory: MemoryMib(129), pages: Pages::Huge, ..config(MachineType::Q35) };
    assert!(refused(odd).starts_with("129 MiB of guest memory are no multiple of 2 MiB"));
    let mut emulated = config(MachineType::Q35);
    emulated.nics[0].vhosts = vec![null()];
    assert!(refused(emulated).starts_with("vhost-net"));
    let mut uneven = VmConfig { accelerator: Accelerator::Kvm, ..config(MachineType::Q35) };
    uneven.nics[0].vhosts = vec![null(), null()];
    assert!(refused(uneven).starts_with("a card with 1 queues and 2 descriptors"));
    assert!(check(&config(MachineType::Microvm)).is_ok());
}
