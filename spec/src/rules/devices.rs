//! `linux.devices`: nodes for devices that the guest has too.

use std::path::Path;

use serde_json::{Value, json};

use crate::{checked::HostDisk, document::Document, error::SpecError, rules::elements};

/// Character devices that every guest has, with the name that Linux gives them.
pub(crate) const GUEST_DEVICES: &[(u64, u64, &str)] = &[
    (1, 3, "null"),
    (1, 5, "zero"),
    (1, 7, "full"),
    (1, 8, "random"),
    (1, 9, "urandom"),
    (1, 11, "kmsg"),
    (5, 0, "tty"),
    (5, 1, "console"),
    (5, 2, "ptmx"),
    (10, 200, "net/tun"),
    (10, 229, "fuse"),
];

/// A node is made for a device that the guest has too, or that nobody has: opened, that one fails as it does on the
/// host. A block device of the host becomes a disk of the guest, found there by its serial number. Another one that only
/// the host has is refused; but when every device is allowed, the list is an engine's enumeration of its host
/// (`--privileged`), and the guest makes those that it has.
pub(super) fn check(
    document: &mut Document,
    config: &Value,
    guest: &mut Value,
) -> Result<Vec<HostDisk>, SpecError> {
    for (index, rule) in elements(&config["linux"]["resources"]["devices"]).iter().enumerate() {
        let checked = check_rule(document, &format!("linux.resources.devices[{index}]"), rule);
        document.settle(checked)?;
    }
    let all_allowed = allows_all(config);
    let mut disks: Vec<HostDisk> = Vec::new();
    for (index, device) in elements(&config["linux"]["devices"]).iter().enumerate() {
        let known = check_one(document, &format!("linux.devices[{index}]"), device, all_allowed);
        match document.settle(known)? {
            Some(Known::Perhaps) => guest["linux"]["devices"][index]["optional"] = json!(true),
            Some(Known::Disk(major, minor)) => {
                let disk =
                    HostDisk { major, minor, writable: may_be_written(config, major, minor) };
                guest["linux"]["devices"][index]["disk"] = json!(disk.serial());
                if !disks.contains(&disk) {
                    disks.push(disk);
                }
            }
            Some(Known::Yes) | None => {}
        }
    }
    if let Some(resources) = guest.pointer_mut("/linux/resources") {
        name_disks(resources, &disks);
    }
    Ok(disks)
}

/// A disk has another number in the guest: device rules that name the host's say, for the guest, which disk they mean.
pub fn name_disks(resources: &mut Value, disks: &[HostDisk]) {
    let rules = resources.get_mut("devices").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let number = (rule["major"].as_u64(), rule["minor"].as_u64());
        let meant = |disk: &&HostDisk| (Some(disk.major), Some(disk.minor)) == number;
        if let Some(disk) = disks.iter().filter(|_| rule["type"] == "b").find(meant) {
            rule["disk"] = json!(disk.serial());
        }
    }
}

/// True when the rules let the container write to a block device: the last one that speaks of it decides, as in the kernel.
fn may_be_written(config: &Value, major: u64, minor: u64) -> bool {
    let is = |field: &Value, number: u64| {
        field.as_i64().is_none_or(|wanted| wanted < 0 || u64::try_from(wanted) == Ok(number))
    };
    // `a` is all of them, for runc, too.
    let speaks = |rule: &&Value| {
        matches!(rule["type"].as_str().unwrap_or("a"), "" | "a" | "b")
            && is(&rule["major"], major)
            && is(&rule["minor"], minor)
            && rule["access"].as_str().is_none_or(|access| access.contains(['w', 'a']))
    };
    let rules = elements(&config["linux"]["resources"]["devices"]);
    rules.iter().rev().find(speaks).is_some_and(|rule| rule["allow"] == true)
}

/// The type was checked by the table. Of runc, too: `a` is all of them.
fn check_rule(document: &Document, field: &str, rule: &Value) -> Result<(), SpecError> {
    let access = rule["access"].as_str().unwrap_or_default();
    if !access.chars().all(|letter| "rwma".contains(letter)) {
        let why = format!("{access:?} is not made of r, w and m");
        return Err(document.wrong(format!("{field}.access"), why));
    }
    Ok(())
}

/// Whether the guest has a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Its node can be made.
    Yes,
    /// Its node is made if so.
    Perhaps,
    /// It is given this one of the host's.
    Disk(u64, u64),
}

fn check_one(
    document: &mut Document,
    field: &str,
    device: &Value,
    all_allowed: bool,
) -> Result<Known, SpecError> {
    let path = device["path"].as_str().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(document.wrong(format!("{field}.path"), "must be an absolute path"));
    }
    let kind = device["type"].as_str().unwrap_or_default();
    // A fifo is no device: it is made like a file.
    if kind == "p" {
        return Ok(Known::Yes);
    }
    let (Some(major), Some(minor)) = (device["major"].as_u64(), device["minor"].as_u64()) else {
        return Err(document.wrong(field, format!("{path} needs a major and a minor number")));
    };
    if kind != "b" && GUEST_DEVICES.iter().any(|(a, b, _)| (*a, *b) == (major, minor)) {
        return Ok(Known::Yes);
    }
    if all_allowed {
        document.translate("linux.devices[]", "of all the host's, those that the guest has");
        return Ok(Known::Perhaps);
    }
    if kind == "b" && host_has(kind, major, minor) {
        document.translate("linux.devices[]", "a block device of the host, as a disk of the guest");
        return Ok(Known::Disk(major, minor));
    }
    if host_has(kind, major, minor) {
        let why = format!(
            "{path} ({kind} {major}:{minor}) is a device of the host, which the guest does not have"
        );
        return Err(document.refuse(field, why));
    }
    document.translate("linux.devices[]", "a node of a device that nobody has");
    Ok(Known::Yes)
}

/// True when the device rules let the container use whatever there is.
fn allows_all(config: &Value) -> bool {
    let anything = |rule: &Value| {
        let any = |name: &str| rule[name].as_i64().is_none_or(|number| number < 0);
        let kind = rule["type"].as_str().unwrap_or_default();
        let access = rule["access"].as_str().unwrap_or("rwm");
        rule["allow"] == true
            && matches!(kind, "" | "a")
            && any("major")
            && any("minor")
            && "rwm".chars().all(|letter| access.contains(letter))
    };
    elements(&config["linux"]["resources"]["devices"]).last().is_some_and(anything)
}

fn host_has(kind: &str, major: u64, minor: u64) -> bool {
    let class = if kind == "b" { "block" } else { "char" };
    Path::new("/sys/dev").join(class).join(format!("{major}:{minor}")).exists()
}
