//! `linux.devices`: nodes for devices that the guest has too.

use serde_json::Value;

use crate::{document::Document, error::SpecError};

/// Character devices that every guest has, with the name that Linux gives them.
pub(crate) const GUEST_DEVICES: &[(u64, u64, &str)] = &[
    (1, 3, "null"),
    (1, 5, "zero"),
    (1, 7, "full"),
    (1, 8, "random"),
    (1, 9, "urandom"),
    (5, 0, "tty"),
    (5, 1, "console"),
    (5, 2, "ptmx"),
    (10, 200, "net/tun"),
    (10, 229, "fuse"),
];

pub(super) fn check(document: &Document, config: &Value) -> Result<(), SpecError> {
    let devices = config["linux"]["devices"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, device) in devices.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        let path = device["path"].as_str().unwrap_or_default();
        if !path.starts_with('/') {
            return Err(document.wrong(format!("{field}.path"), "must be an absolute path"));
        }
        let kind = device["type"].as_str().unwrap_or_default();
        // A fifo is no device: it is made like a file.
        if kind == "p" {
            continue;
        }
        let (Some(major), Some(minor)) = (device["major"].as_u64(), device["minor"].as_u64())
        else {
            return Err(document.wrong(field, format!("{path} needs a major and a minor number")));
        };
        let known = GUEST_DEVICES.iter().any(|(a, b, _)| (*a, *b) == (major, minor));
        if kind == "b" || !known {
            let why = format!(
                "{path} ({kind} {major}:{minor}) is a device of the host, which the guest does not have"
            );
            return Err(document.refuse(field, why));
        }
    }
    Ok(())
}
