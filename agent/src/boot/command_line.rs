//! The kernel command line: what is in it for us, and what is left for others.

use kata_protocol::{NONCE_PARAMETER, hello::BootNonce};

use super::BootError;

/// The boot nonce.
pub fn nonce(line: &str) -> Result<BootNonce, BootError> {
    let hex = line.split_whitespace().find_map(parameter).ok_or(BootError::NoNonce)?;
    let mut nonce = BootNonce::default();
    if !hex.is_ascii() || hex.len() != 2 * nonce.len() {
        return Err(BootError::MalformedNonce);
    }
    for (index, byte) in nonce.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16)
            .map_err(|_| BootError::MalformedNonce)?;
    }
    Ok(nonce)
}

/// The line without the nonce.
pub fn scrub(line: &str) -> String {
    let kept: Vec<&str> =
        line.split_whitespace().filter(|word| parameter(word).is_none()).collect();
    kept.join(" ") + "\n"
}

fn parameter(word: &str) -> Option<&str> {
    word.strip_prefix(NONCE_PARAMETER)?.strip_prefix('=')
}

#[cfg(test)]
mod tests {
    use super::{BootError, nonce, scrub};

    #[test]
    fn the_nonce_is_found_and_scrubbed() {
        let line = format!("console=ttyS0 kata.nonce={} quiet\n", "0f".repeat(32));
        assert_eq!(nonce(&line).unwrap(), [15; 32]);
        assert_eq!(scrub(&line), "console=ttyS0 quiet\n");
    }

    #[test]
    fn another_guest_is_not_ours() {
        assert!(matches!(nonce("root=/dev/vda kata.nonces=1"), Err(BootError::NoNonce)));
        for hex in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            let line = format!("kata.nonce={hex}");
            assert!(matches!(nonce(&line), Err(BootError::MalformedNonce)), "{hex}");
        }
    }
}
