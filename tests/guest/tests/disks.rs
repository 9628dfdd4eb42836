//! Block devices of the host, which are disks of the guest.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
};

use kata_guest_tests::{Bundle, Container, Kata, Leftovers, LoopDevice, busybox, run};
use rustix::fs::{major, minor};
use serde_json::{Value, json};

/// Gives a device to a container at `path`, as podman and docker write it.
fn give(device: &LoopDevice, config: &mut Value, path: &str, access: &str) {
    let number = fs::metadata(device.path()).unwrap().rdev();
    let (major, minor) = (major(number), minor(number));
    let node = json!({"path": path, "type": "b", "major": major, "minor": minor,
        "fileMode": 0o660, "uid": 0, "gid": 6});
    let rule =
        json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
    for (list, entry) in [("/linux/devices", node), ("/linux/resources/devices", rule)] {
        config.pointer_mut(list).unwrap().as_array_mut().unwrap().push(entry);
    }
}

/// Runs a script on runc and on Kata, each with two fresh devices: `/dev/first` as asked for, `/dev/second` to be read
/// alone. What it prints must be this.
fn says(script: &str, expected: &str, check: impl Fn(&LoopDevice, &LoopDevice)) {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sh", "-c", script]);
    bundle.config["linux"]["devices"] = json!([]);
    bundle.config["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let plain = bundle.config.clone();
    for runtime in [&Kata::oracle(), &kata] {
        let (Some(first), Some(second)) = (LoopDevice::new(), LoopDevice::new()) else { return };
        second.open().write_all_at(b"second", 0).unwrap();
        bundle.config = plain.clone();
        give(&first, &mut bundle.config, "/dev/first", "rwm");
        give(&second, &mut bundle.config, "/dev/sub/second", "r");
        bundle.write();
        let id = format!("disks-{}", std::process::id());
        let output = run(runtime.command(&["run", "--bundle", bundle.path(), &id]), b"");
        let said = (output.code, output.stdout());
        assert_eq!(said, (0, expected.to_owned()), "{:?}: {}", runtime.program(), output.stderr());
        check(&first, &second);
        let left = Leftovers::holders(&runtime.state());
        assert_eq!(left, Vec::<String>::new());
    }
}

#[test]
fn a_container_reads_and_writes_the_block_devices_that_it_is_given() {
    let script = "
stat -c '%F %a %u %g' /dev/first /dev/sub/second
wc -c </dev/first
head -c 6 /dev/sub/second; echo
printf written | dd of=/dev/first bs=1 seek=4096 conv=notrunc 2>/dev/null && echo wrote
(echo x >/dev/sub/second) 2>/dev/null || echo kept
mknod /dev/other b 7 99 && (head -c 1 /dev/other) 2>&1 | sed 's/.*: //'";
    let expected = "block special file 660 0 6\nblock special file 660 0 6\n1048576\nsecond\nwrote\nkept\n\
                    Operation not permitted\n";
    says(script, expected, |first, second| {
        let mut bytes = [0; 7];
        first.open().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"written");
        // A device writes back when its last user closes it, and a shim may be about to.
        first.open().sync_all().unwrap();
        first.file().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"written", "in the file below the device");
        second.open().read_exact_at(&mut bytes[..6], 0).unwrap();
        assert_eq!(&bytes[..6], b"second");
    });
}

#[test]
fn rules_of_an_update_mean_the_hosts_device_too() {
    let (Some(kata), Some(root)) = (Kata::installed(), busybox()) else { return };
    let mut bundle = Bundle::new(&kata, root, &["sleep", "1000"]);
    bundle.config["linux"]["devices"] = json!([]);
    bundle.config["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let Some(device) = LoopDevice::new() else { return };
    give(&device, &mut bundle.config, "/dev/disk", "rwm");
    bundle.write();
    let container = Container::started(&kata, &bundle, "disk");
    let rules = json!({"devices": bundle.config["linux"]["resources"]["devices"]});
    let read = ["head", "-c", "1", "/dev/disk"];
    assert_eq!(container.exec(&read, b"").code, 0);
    let words = ["update", "--resources", "-", &container.id];
    let updated = run(kata.command(&words), rules.to_string().as_bytes());
    assert_eq!(updated.code, 0, "{}", updated.stderr());
    let after = container.exec(&read, b"");
    assert_eq!(after.code, 0, "{}", after.stderr());
}
