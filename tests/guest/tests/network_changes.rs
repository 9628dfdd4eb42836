//! What happens to a network namespace after the start of its container happens in the guest.
#![allow(clippy::unwrap_used)]

use kata_guest_tests::{Container, HostProcess, Load, Wire, Wired, has_kind, ip, repetitions};
use rustix::process::Signal;
use serde_json::json;

fn fixture() -> Option<Wired> {
    let wire =
        || Wire::new(&["192.0.2.2/24", "2001:db8::2/64"], &["192.0.2.1/24", "2001:db8::1/64"]);
    Wired::new(wire, &["sleep", "1000"], json!({}))
}

#[test]
fn addresses_routes_and_neighbours_come_and_go() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("changes");
    for (change, script) in [
        (
            "address add 198.51.100.7/32 dev eth0",
            "ip address show dev eth0 | grep -q 198.51.100.7/32",
        ),
        (
            "address add 2001:db8::7/64 dev eth0 nodad",
            "ip address show dev eth0 | grep 2001:db8::7 | grep -qv tentative",
        ),
        ("route add default via 192.0.2.1", "ip route | grep -q 'default via 192.0.2.1'"),
        (
            "route add 203.0.113.0/24 via 192.0.2.1 table 77 metric 5",
            "ip route show table 77 | grep -q '203.0.113.0/24 via 192.0.2.1.*metric 5'",
        ),
        (
            "rule add from 192.0.2.2 table 77 priority 5",
            "ip rule | grep -q '^5:.*from 192.0.2.2 lookup 77'",
        ),
        (
            "route replace 10.9.0.0/16 nexthop via 192.0.2.1 nexthop via 192.0.2.9",
            "test $(ip route | grep -A2 ^10.9.0.0/16 | grep -c nexthop) -eq 2",
        ),
        ("rule delete priority 5", "! ip rule | grep -q ^5:"),
        ("route add blackhole 203.0.113.128/25", "ip route | grep -q 'blackhole 203.0.113.128/25'"),
        (
            "route replace default via 192.0.2.9",
            "ip route | grep -q 'default via 192.0.2.9' && ! ip route | grep -q 'default via 192.0.2.1 '",
        ),
        (
            "route prepend default via 192.0.2.7",
            "test \"$(ip route show default | cut -d ' ' -f 3 | xargs)\" = '192.0.2.7 192.0.2.9'",
        ),
        ("route delete default via 192.0.2.7", "! ip route | grep -q 192.0.2.7"),
        (
            "route append 2001:db8:9::/48 via 2001:db8::1",
            "ip -6 route | grep -q '2001:db8:9::/48 via 2001:db8::1'",
        ),
        (
            "route append 2001:db8:9::/48 via 2001:db8::9",
            "test $(ip -6 route | grep -A2 ^2001:db8:9::/48 | grep -c nexthop) -eq 2",
        ),
        (
            "route delete 2001:db8:9::/48 via 2001:db8::1",
            "ip -6 route | grep -q '2001:db8:9::/48 via 2001:db8::9'",
        ),
        (
            "neighbour add 192.0.2.77 lladdr 02:00:00:00:00:77 nud permanent dev eth0",
            "ip neighbour | grep -q '192.0.2.77.*02:00:00:00:00:77'",
        ),
        ("link set eth0 mtu 1300", "ip link show eth0 | grep -q 'mtu 1300'"),
        (
            "address delete 198.51.100.7/32 dev eth0",
            "! ip address show dev eth0 | grep -q 198.51.100.7",
        ),
        (
            "address delete 2001:db8::7/64 dev eth0",
            "! ip address show dev eth0 | grep -q 2001:db8::7/",
        ),
        ("route delete default", "! ip route | grep -q default"),
        ("route delete blackhole 203.0.113.128/25", "! ip route | grep -q blackhole"),
        ("neighbour delete 192.0.2.77 dev eth0", "! ip neighbour | grep -q 192.0.2.77"),
        (
            "link set eth0 address 02:00:00:00:be:ef",
            "ip link show eth0 | grep -q 02:00:00:00:be:ef",
        ),
        ("link set eth0 down", "ip link show eth0 | grep -q 'state DOWN'"),
        (
            "link set eth0 up",
            "ip link show eth0 | grep -q 'state UP' && ip route | grep -q '192.0.2.0/24 dev eth0'",
        ),
    ] {
        fixture.ip(change);
        container.until(script);
    }
    let ping = container.exec(&["ping", "-c", "1", "-W", "5", "192.0.2.1"], b"");
    assert_eq!(ping.code, 0, "{}{}", ping.stdout(), ping.stderr());
}

#[test]
fn a_link_that_appears_is_usable_and_one_that_goes_is_gone() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("link");
    let before = container.exec(&["ls", "/sys/class/net"], b"").stdout();
    assert_eq!(before, "eth0\nlo\n", "a spare card is not to be seen");
    // The other one is busy all the time, both ways.
    let load = Load::on(&container);
    for round in 0..repetitions(50) {
        fixture.wire.connect("net1", 9);
        container.until("ping -c 1 -W 1 10.9.0.1");
        let renamed = round == 0;
        if renamed {
            fixture.ip("link set net1 name net2");
            container.until("ip address show dev net2 | grep -q 10.9.0.2/24");
        }
        fixture.ip(if renamed { "link delete net2" } else { "link delete net1" });
        container.until("test ! -e /sys/class/net/net1 -a ! -e /sys/class/net/net2");
        // The other one has served all the time.
        container.until("ping -c 1 -W 1 192.0.2.1");
    }
    load.was_served();
    container.remove_running();
}

#[test]
fn a_link_that_becomes_a_port_comes_with_its_bridge() {
    let Some(fixture) = fixture().filter(|_| has_kind("bridge")) else { return };
    let before = fixture.snapshot();
    let container = fixture.start("port");
    fixture.wire.connect("net1", 9);
    container.until("ping -c 1 -W 1 10.9.0.1");
    for step in [
        "link add br0 type bridge",
        "link set net1 master br0",
        "address delete 10.9.0.2/24 dev net1",
        "address add 10.9.0.2/24 dev br0",
        "link set br0 up",
    ] {
        fixture.ip(step);
    }
    // There is one spare card, which was the port's.
    container.until("test ! -e /sys/class/net/net1 && ping -c 1 -W 1 10.9.0.1");
    container.network_told("br0 (bridge): redirected to a tap");
    fixture.ip("link delete br0");
    container.network_told("net1 (veth): redirected to a tap");
    fixture.ip("link delete net1");
    fixture.ends_as_before(container, &before);
}

#[test]
fn ipv6_that_is_switched_on_later_comes_with_its_addresses() {
    let off = || {
        let wire = Wire::new(&["192.0.2.2/24"], &["192.0.2.1/24", "2001:db8::1/64"]);
        switch_ipv6(&wire, false);
        wire
    };
    let Some(fixture) = Wired::new(off, &["sleep", "1000"], json!({})) else { return };
    let container = fixture.start("later");
    container.until("test $(cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6) = 1");
    switch_ipv6(&fixture.wire, true);
    fixture.ip("address add 2001:db8::2/64 dev eth0 nodad");
    container.until("ping -c 1 -W 1 2001:db8::1");
}

#[test]
fn routes_that_went_with_an_address_come_again_with_the_next() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("moved");
    fixture.ip("route add default via 192.0.2.1");
    container.until("ip route | grep -q ^default");
    for (old, new) in [("192.0.2.2/24", "192.0.2.3/24"), ("192.0.2.3/24", "192.0.2.2/24")] {
        // All at once, or one after the other.
        let steps = [
            format!("address delete {old} dev eth0"),
            format!("address add {new} dev eth0"),
            "route add default via 192.0.2.1".to_owned(),
        ];
        if old == "192.0.2.2/24" {
            let batch = fixture.bundle.file("moves");
            std::fs::write(&batch, steps.join("\n")).unwrap();
            fixture.wire.ip(&["-batch", batch.to_str().unwrap()]);
        } else {
            fixture.ip(&steps[0]);
            container.until("! ip route | grep -q ^default");
            steps[1..].iter().for_each(|step| _ = fixture.ip(step));
        }
        container.until(&format!("ip address show dev eth0 | grep -q {new}"));
        container.until("ip route | grep -q ^default && ip route | grep -q ^192.0.2.0/24");
    }
    container.until("ping -c 1 -W 1 192.0.2.1");
}

#[test]
fn ipv6_that_a_container_is_to_be_without_stays_away() {
    let Some(mut fixture) = fixture() else { return };
    fixture.bundle.config["linux"]["sysctl"] = json!({"net.ipv6.conf.all.disable_ipv6": "1"});
    fixture.bundle.write();
    let container = Container::create(&fixture.kata, &fixture.bundle, "without");
    // Engines look there before the start.
    let disabled = ["cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"];
    let host = || ip(&[&["netns", "exec", &fixture.wire.name], &disabled[..]].concat());
    assert_eq!(host(), "1\n", "in the namespace of the host");
    container.must("start");
    fixture.ip("link set eth0 mtu 1300");
    container.until("ip link show eth0 | grep -q 'mtu 1300'");
    // The MTU is the first of a link that changes, addresses are the last.
    fixture.ip("address add 198.51.100.7/32 dev eth0");
    container.until("ip address show dev eth0 | grep -q 198.51.100.7/32");
    assert_eq!(container.exec(&disabled, b"").stdout(), "1\n", "in the guest");
    assert_eq!(container.exec(&["ip", "-6", "address"], b"").stdout(), "", "in the guest");
}

#[test]
fn kernel_parameters_of_a_link_come_with_it_and_stay_as_the_container_has_them() {
    let Some(mut fixture) = fixture() else { return };
    fixture.bundle.config["linux"]["readonlyPaths"] = json!([]);
    fixture.bundle.write();
    set(&fixture.wire, "net.ipv4.conf.eth0.tag=2");
    let container = fixture.start("parameters");
    fixture.ip(&format!("link add net1 type veth peer name far netns {}", fixture.wire.peer));
    set(&fixture.wire, "net.ipv4.conf.net1.tag=2");
    // The kernel tells of no parameter: it is told with what else changes.
    fixture.ip("address add 10.9.0.2/24 dev net1");
    container.until("ip address show dev net1 | grep -q 10.9.0.2/24");
    let tags = "cd /proc/sys/net/ipv4/conf; cat eth0/tag net1/tag";
    let tags = || container.exec(&["sh", "-c", tags], b"").stdout();
    assert_eq!(tags(), "2\n2\n");
    let own = container.exec(&["sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/eth0/tag"], b"");
    assert_eq!(own.code, 0, "{}", own.stderr());
    fixture.ip("address add 198.51.100.7/32 dev eth0");
    container.until("ip address show dev eth0 | grep -q 198.51.100.7/32");
    assert_eq!(tags(), "0\n2\n", "the container's own is not written over");
    set(&fixture.wire, "net.ipv4.conf.eth0.tag=1");
    fixture.ip("address delete 198.51.100.7/32 dev eth0");
    container.until("! ip address show dev eth0 | grep -q 198.51.100.7");
    assert_eq!(tags(), "1\n2\n", "what the host changes is");
}

fn switch_ipv6(wire: &Wire, on: bool) {
    set(wire, &format!("net.ipv6.conf.eth0.disable_ipv6={}", u8::from(!on)));
}

fn set(wire: &Wire, parameter: &str) {
    ip(&["netns", "exec", &wire.name, "sysctl", "-qw", parameter]);
}

#[test]
fn a_route_by_two_links_goes_on_by_one() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("forked");
    fixture.wire.connect("net1", 9);
    fixture.ip("route add 10.2.0.0/16 nexthop via 192.0.2.1 nexthop via 10.9.0.1");
    let alive =
        "ip route show 10.2.0.0/16 | grep via | grep -v dead | grep -o 'dev [a-z0-9]*' | xargs";
    container.until(&format!("test \"$({alive})\" = 'dev eth0 dev net1'"));
    fixture.ip("link set net1 down");
    container.until(&format!("test \"$({alive})\" = 'dev eth0'"));
    fixture.ip("link set net1 up");
    container.until(&format!("test \"$({alive})\" = 'dev eth0 dev net1'"));
}

#[test]
fn each_link_has_a_link_local_network_of_its_own() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("local");
    fixture.wire.connect("net1", 9);
    container.until("test \"$(echo $(ip -6 route show fe80::/64 | grep -o 'dev [a-z0-9]*' | sort))\" = 'dev eth0 dev net1'");
}

#[test]
fn a_link_appears_between_create_and_start() {
    let Some(fixture) = fixture() else { return };
    let container = Container::create(&fixture.kata, &fixture.bundle, "between");
    fixture.wire.connect("net1", 9);
    container.must("start");
    let output = container.exec(&["ping", "-c", "1", "-W", "5", "10.9.0.1"], b"");
    assert_eq!(output.code, 0, "{}{}", output.stdout(), output.stderr());
}

#[test]
fn an_mtu_that_no_card_can_have_keeps_no_other_link_outside() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("wide");
    fixture.ip("link set eth0 mtu 65535");
    fixture.wire.connect("net1", 9);
    container.until("ping -c 1 -W 1 10.9.0.1");
    container.until("ping -c 1 -W 1 192.0.2.1");
    container.remove_running();
}

#[test]
fn a_link_without_a_card_is_told_with_the_key() {
    let Some(fixture) = fixture() else { return };
    let before = fixture.snapshot();
    let container = fixture.start("crowded");
    container.network_told("eth0 (veth): redirected to a tap");
    fixture.wire.connect("net1", 9);
    container.network_told("net1 (veth): redirected to a tap");
    fixture.wire.connect("net2", 10);
    container
        .network_told("net2 (veth): not in the guest: no card is left; raise network.spare_nics");
    // The card of one that goes is the other one's.
    fixture.ip("link delete net1");
    container.network_told("net2 (veth): redirected to a tap");
    container.until("ping -c 1 -W 1 10.10.0.1");
    fixture.ip("link delete net2");
    fixture.ends_as_before(container, &before);
}

#[test]
fn a_tap_that_a_dead_sandbox_has_left_is_no_link_whatever_its_name() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("former");
    let taps = fixture.wire.ip(&["-json", "link", "show", "kata0"]);
    let taps: serde_json::Value = serde_json::from_str(&taps).unwrap();
    let alias = taps[0]["ifalias"].as_str().unwrap();
    container.remove_running();
    // As they are while its VMM has not ended yet; one is somebody else's, who says nothing of Kata.
    for name in ["kata0", "kata1"] {
        fixture.ip(&format!("tuntap add {name} mode tap"));
    }
    fixture.wire.ip(&["link", "set", "kata0", "alias", alias]);
    let before = fixture.snapshot();
    let container = fixture.start("latter");
    let links = container.exec(&["ls", "/sys/class/net"], b"").stdout();
    assert_eq!(links, "eth0\nkata1\nlo\n");
    container.until("ping -c 1 -W 1 192.0.2.1");
    fixture.ends_as_before(container, &before);
}

#[test]
fn events_that_were_lost_are_made_up_for() {
    const ROUTES: usize = 1000;
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("lost");
    // Who does not read them loses them: the kernel keeps some hundred.
    container.signal_host(HostProcess::Shim, Signal::STOP);
    let routes: String = (0..ROUTES)
        .map(|i| format!("route add 10.50.{}.{}/32 via 192.0.2.1\n", i / 250, i % 250))
        .collect();
    let batch = fixture.bundle.file("routes");
    std::fs::write(&batch, routes).unwrap();
    // This one is in the queue, and that it goes is not.
    fixture.ip("address add 192.0.2.4/32 dev eth0");
    fixture.wire.ip(&["-batch", batch.to_str().unwrap()]);
    fixture.ip("address delete 192.0.2.4/32 dev eth0");
    fixture.ip("address add 192.0.2.3/32 dev eth0");
    container.signal_host(HostProcess::Shim, Signal::CONT);
    container.until(&format!("test $(ip route | grep -c '^10.50.') -eq {ROUTES}"));
    container.until("ip address show dev eth0 | grep -q 192.0.2.3/32");
    // What happens from then on is heard again.
    fixture.ip("address delete 192.0.2.3/32 dev eth0");
    container.until("! ip address show dev eth0 | grep -q -e 192.0.2.3/32 -e 192.0.2.4/32");
}

#[test]
fn links_are_counted_where_engines_and_people_read() {
    let Some(fixture) = fixture() else { return };
    let container = fixture.start("counted");
    let counted = || {
        let events = container.call(&["events", "--stats"]);
        assert_eq!(events.code, 0, "{}", events.stderr());
        let event: serde_json::Value = serde_json::from_slice(&events.stdout).unwrap();
        let links = &event["data"]["network_interfaces"];
        assert_eq!((links.as_array().unwrap().len(), &links[0]["Name"]), (1, &"eth0".into()));
        ["RxBytes", "TxBytes"].map(|name| links[0][name].as_u64().unwrap())
    };
    let before = counted();
    let ping = ["ping", "-c", "10", "-i", "0.1", "-W", "5", "-s", "1000", "192.0.2.1"];
    assert_eq!(container.exec(&ping, b"").code, 0);
    let after = counted();
    // Ten times 1042 bytes each way.
    assert!((0..2).all(|way| after[way] - before[way] >= 10_420), "{before:?}, {after:?}");
}
