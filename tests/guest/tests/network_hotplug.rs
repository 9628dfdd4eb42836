//! Links for which no card waits: on q35 cards are added to the running VM, and taken out again.
#![allow(clippy::unwrap_used)]

use kata_guest_tests::{Load, Wire, Wired, repetitions};
use serde_json::json;

/// Root ports of a VM, and the one card that waits.
const PORTS: u8 = 4;
const SPARES: u8 = 1;

fn fixture() -> Option<Wired> {
    let wire = || Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24"]);
    let machine = json!({"io.katacontainers.hypervisor.machine": "q35"});
    Wired::new(wire, &["sleep", "1000"], machine)
}

/// Adds a link by its number.
fn connect(fixture: &Wired, number: u8) {
    fixture.wire.connect(&format!("net{number}"), number);
}

/// The cards that the guest has on PCI, with or without a link.
const CARDS: &str = "cat /sys/bus/pci/devices/*/class | grep -c 0x020000";

#[test]
fn links_beyond_the_cards_that_wait_get_cards_and_give_them_back() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    let container = fixture.start("plugged");
    container.until(&format!("test $({CARDS}) -eq 2"));
    let most = SPARES + PORTS;
    for number in 1..=most {
        connect(&fixture, number);
        container.until(&format!("ping -c 1 -W 1 10.{number}.0.1"));
    }
    let names = container.exec(&["ls", "/sys/class/net"], b"").stdout();
    assert_eq!(names, "eth0\nlo\nnet1\nnet2\nnet3\nnet4\nnet5\n");
    connect(&fixture, most + 1);
    container
        .network_told("net6 (veth): not in the guest: no card is left; raise network.spare_nics");
    for number in 1..=most + 1 {
        fixture.ip(&format!("link delete net{number}"));
    }
    // The ports become free while others come, which have the addresses of cards that leave.
    for number in (1..=most).rev() {
        connect(&fixture, number);
    }
    for number in 1..=most {
        container.until(&format!("ping -c 1 -W 1 10.{number}.0.1"));
    }
    for number in 1..=most {
        fixture.ip(&format!("link delete net{number}"));
    }
    container.until(&format!("test $({CARDS}) -eq 2"));
    container.until("ping -c 1 -W 1 192.0.2.1");
    fixture.ends_as_before(container, &before);
}

#[test]
fn a_card_that_cannot_be_added_keeps_its_link_outside_and_nothing_else() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    let container = fixture.faulty("unplugged", "PlugCard=fail");
    connect(&fixture, 1);
    connect(&fixture, 2);
    container.network_told("net2 (veth): not in the guest: ");
    container.until("ping -c 1 -W 1 10.1.0.1");
    fixture.ip("link delete net1");
    // Its card serves the other one.
    container.until("ping -c 1 -W 1 10.2.0.1");
    fixture.ip("link delete net2");
    fixture.ends_as_before(container, &before);
}

#[test]
fn a_card_that_cannot_be_taken_out_serves_another_link() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    let container = fixture.faulty("kept", "UnplugCard=fail");
    for (first, second) in [(1, 2), (3, 4)] {
        connect(&fixture, first);
        connect(&fixture, second);
        container.until(&format!("ping -c 1 -W 1 10.{first}.0.1"));
        container.until(&format!("ping -c 1 -W 1 10.{second}.0.1"));
        fixture.ip(&format!("link delete net{first}"));
        fixture.ip(&format!("link delete net{second}"));
        container.until("test \"$(ls -x /sys/class/net | xargs)\" = 'eth0 lo'");
    }
    container.until(&format!("test $({CARDS}) -eq 3"));
    fixture.ends_as_before(container, &before);
}

/// Ejects the card of a link, which is on PCI behind its virtio device.
const EJECT: &str = "
card=$(basename $(readlink -f /sys/class/net/net2/device/..))
for slot in /sys/bus/pci/slots/*; do
    test $(cat $slot/address).0 = $card && echo 0 > $slot/power && exit
done
exit 1";

#[test]
fn a_card_that_the_guest_ejects_is_replaced_and_not_for_ever() {
    let Some(mut fixture) = fixture() else { return };
    let mounts = fixture.bundle.config["mounts"].as_array_mut().unwrap();
    let system = mounts.iter_mut().find(|mount| mount["destination"] == "/sys").unwrap();
    system["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
    fixture.bundle.write();
    let before = fixture.snapshot();
    let container = fixture.start("ejected");
    connect(&fixture, 1);
    container.until("ping -c 1 -W 1 10.1.0.1");
    connect(&fixture, 2);
    for _ in 0..4 {
        container.until("ping -c 1 -W 1 10.2.0.1");
        let ejected = container.exec(&["sh", "-c", EJECT], b"");
        assert_eq!(ejected.code, 0, "{}{}", ejected.stdout(), ejected.stderr());
    }
    container.network_told("net2 (veth): not in the guest: the guest has let go of 4 cards");
    container.until("ping -c 1 -W 1 10.1.0.1");
    for link in ["net1", "net2"] {
        fixture.ip(&format!("link delete {link}"));
    }
    fixture.ends_as_before(container, &before);
}

#[test]
fn cards_come_and_go_under_load() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("busy");
    let load = Load::on(&container);
    for _ in 0..repetitions(50) {
        for number in [1, 2, 3] {
            connect(&fixture, number);
        }
        container.until("for i in 1 2 3; do ping -c 1 -W 1 10.$i.0.1 || exit 1; done");
        for number in [1, 2, 3] {
            fixture.ip(&format!("link delete net{number}"));
        }
        container.until(&format!("test $({CARDS}) -eq 2"));
    }
    load.was_served();
    container.remove_running();
}
