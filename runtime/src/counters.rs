//! What the links of a container's network namespace have carried, in runc's form.
//!
//! The links are the engine's, and whatever goes to and from the guest passes them: so their counters are the
//! guest's, seen from there. The taps beside them are left out.

use std::fs;

use serde_json::{Value, json};

/// Of each link of the namespace that process `pid` lives in; null when that can't be read any more.
pub fn of_links(pid: u32) -> Value {
    match fs::read_to_string(format!("/proc/{pid}/net/dev")) {
        Ok(text) => text.lines().filter_map(link).collect(),
        // It has ended, and its namespace with it.
        Err(_) => Value::Null,
    }
}

/// A line of `/proc/net/dev`: eight numbers each way.
fn link(line: &str) -> Option<Value> {
    let (name, numbers) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|one| one.parse().ok()).collect();
    let [
        rx,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers[..]
    else {
        return None;
    };
    let is_tap = name.strip_prefix("kata").is_some_and(|rest| rest.parse::<u32>().is_ok());
    (name != "lo" && !is_tap).then(|| {
        json!({
            "Name": name,
            "RxBytes": rx, "RxPackets": rx_packets, "RxErrors": rx_errors, "RxDropped": rx_dropped,
            "TxBytes": tx, "TxPackets": tx_packets, "TxErrors": tx_errors, "TxDropped": tx_dropped,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::link;

    #[test]
    fn a_link_has_its_counters_and_taps_and_loopback_are_none() {
        let numbers = "1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0";
        let eth0 = link(&format!("  eth0: {numbers}")).unwrap();
        assert_eq!(
            (&eth0["Name"], &eth0["RxDropped"], &eth0["TxBytes"]),
            (&"eth0".into(), &4.into(), &5.into())
        );
        assert_eq!(link(&format!("    lo: {numbers}")), None);
        assert_eq!(link(&format!(" kata0: {numbers}")), None);
        assert_eq!(link("Inter-|   Receive    |  Transmit"), None);
    }
}
