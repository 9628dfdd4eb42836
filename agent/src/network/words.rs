//! Addresses as the host writes them.

use std::net::IpAddr;

use super::message::Prefix;
use crate::order::Failure;

pub fn address(text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| Failure::invalid(format!("{text:?} is no IP address")))
}

pub fn prefix(text: &str) -> Result<Prefix, Failure> {
    let wrong = || Failure::invalid(format!("{text:?} is no address with a prefix length"));
    let (network, length) = text.split_once('/').ok_or_else(wrong)?;
    let network = address(network)?;
    let length = length.parse().map_err(|_| wrong())?;
    let longest = if network.is_ipv4() { 32 } else { 128 };
    if length > longest { Err(wrong()) } else { Ok(Prefix { address: network, length }) }
}

pub fn hardware_address(text: &str) -> Result<Vec<u8>, Failure> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| Failure::invalid(format!("{text:?} is no hardware address")))
}

#[cfg(test)]
mod tests {
    use super::{hardware_address, prefix};

    #[test]
    fn malformed_addresses_are_refused() {
        for text in ["", "10.0.0.1", "10.0.0.1/33", "fd00::1/129", "x/8", "10.0.0.1/-1"] {
            assert!(prefix(text).is_err(), "{text}");
        }
        assert_eq!(prefix("fd00::2/64").unwrap().length, 64);
        for text in ["", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:gg", "aa:bb:cc:dd:ee:ff:00"] {
            assert!(hardware_address(text).is_err(), "{text}");
        }
        assert_eq!(hardware_address("02:00:00:00:00:0a").unwrap(), [2, 0, 0, 0, 0, 10]);
    }
}
