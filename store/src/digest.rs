//! Digests: parsed once, and checked while bytes go by.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256, Sha512};

use crate::tar::Source;

/// Name of a content: algorithm and hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// Digest of a text, by SHA-256.
    pub fn of(text: &[u8]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: hex(&Sha256::digest(text)) }
    }

    /// Name of the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// A SHA-256 digest by its digits alone.
    pub(crate) fn sha256(hex: &str) -> Option<Self> {
        format!("sha256:{hex}").parse().ok()
    }

    /// Where a layout has it.
    pub(crate) fn blob(&self) -> String {
        format!("blobs/{}/{}", self.algorithm(), self.hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{:?} is no digest that is known", text.get(..80).unwrap_or(text));
        let (algorithm, digits) = text.split_once(':').ok_or_else(wrong)?;
        let (algorithm, length) = match algorithm {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(wrong()),
        };
        // It becomes a file's name.
        let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != length || !digits.bytes().all(plain) {
            return Err(wrong());
        }
        Ok(Self { algorithm, hex: digits.to_owned() })
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

enum Sum {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

/// Sums up what is read through it.
pub(crate) struct Summed<R> {
    source: R,
    /// None when nobody asks.
    sum: Option<Sum>,
}

impl<R: Read> Summed<R> {
    /// Sums up as `like` was made; not at all without it.
    pub(crate) fn new(source: R, like: Option<&Digest>) -> Self {
        let sum = like.map(|digest| match digest.algorithm {
            Algorithm::Sha256 => Sum::Sha256(Sha256::new()),
            Algorithm::Sha512 => Sum::Sha512(Box::new(Sha512::new())),
        });
        Self { source, sum }
    }

    /// Reads the rest, and says what all of it sums up to.
    pub(crate) fn finish(mut self) -> io::Result<(Option<Digest>, R)> {
        io::copy(&mut self, &mut io::sink())?;
        let digest = self.sum.map(|sum| match sum {
            Sum::Sha256(sum) => Digest { algorithm: Algorithm::Sha256, hex: hex(&sum.finalize()) },
            Sum::Sha512(sum) => Digest { algorithm: Algorithm::Sha512, hex: hex(&sum.finalize()) },
        });
        Ok((digest, self.source))
    }
}

impl<R: Read> Source for Summed<R> {}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        match &mut self.sum {
            Some(Sum::Sha256(sum)) => sum.update(&buffer[..length]),
            Some(Sum::Sha512(sum)) => sum.update(&buffer[..length]),
            None => {}
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::{Digest, Summed};

    #[test]
    fn only_digests_that_are_known_and_whole_are_taken() {
        let text = format!("sha256:{}", "a".repeat(64));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for text in ["", "sha256", "sha256:", "sha256:../../etc/passwd", "md5:00"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
        assert!(format!("sha512:{}", "0".repeat(64)).parse::<Digest>().is_err());
    }

    #[test]
    fn what_goes_by_is_summed_up_to_its_end() {
        let wanted = Digest::of(b"some text");
        let mut summed = Summed::new(&b"some text"[..], Some(&wanted));
        summed.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(summed.finish().unwrap().0, Some(wanted));
    }
}
