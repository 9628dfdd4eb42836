//! Container ids.

use std::{fmt, str::FromStr};

/// Longest id. Engines use 64 characters; what comes after that is a mistake long before it is a name.
pub const MAX_LENGTH: usize = 255;

/// A container id that is safe as a file name: letters, digits, `_`, `+`, `-`, `.`, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

/// Why a word is no id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    #[error("container id is empty")]
    Empty,
    #[error("container id has {0} characters, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    #[error(
        "invalid container id {id:?}: {wrong:?} is not allowed, only letters, digits and _+-. are"
    )]
    Character { id: String, wrong: char },
    #[error("invalid container id {0:?}: it names a directory")]
    Dots(String),
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(word: &str) -> Result<Self, IdError> {
        let allowed = |c: &char| c.is_ascii_alphanumeric() || "_+-.".contains(*c);
        if word.is_empty() {
            return Err(IdError::Empty);
        }
        if word.len() > MAX_LENGTH {
            return Err(IdError::TooLong(word.chars().count()));
        }
        if let Some(wrong) = word.chars().find(|c| !allowed(c)) {
            return Err(IdError::Character { id: word.to_owned(), wrong });
        }
        if word == "." || word == ".." {
            return Err(IdError::Dots(word.to_owned()));
        }
        Ok(Self(word.to_owned()))
    }
}

impl ContainerId {
    /// An id that nobody has thought of: 64 random bits.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 8];
        let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        if length != bytes.len() {
            return Err(std::io::Error::other("too few random bytes"));
        }
        Ok(Self(format!("kata-{:016x}", u64::from_ne_bytes(bytes))))
    }

    /// The word itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{ContainerId, IdError};

    fn parse(word: &str) -> Result<ContainerId, IdError> {
        word.parse()
    }

    #[test]
    fn what_engines_use_is_allowed() {
        for word in ["c1", "a", "0", "web_1.2+x-y", "...", "..a", "-dash", &"f".repeat(64)] {
            assert_eq!(parse(word).unwrap().as_str(), word);
        }
    }

    #[test]
    fn what_could_leave_the_state_directory_is_not() {
        for word in ["", ".", "..", "a/b", "../x", "/", "a b", "ü", "a\0b", "a\nb", "a:b", "a@b"] {
            assert!(parse(word).is_err(), "{word:?}");
        }
    }

    #[test]
    fn a_long_id_is_told_its_length() {
        assert_eq!(parse(&"x".repeat(255)).map(drop), Ok(()));
        assert_eq!(parse(&"x".repeat(2000)), Err(IdError::TooLong(2000)));
    }

    #[test]
    fn random_ids_are_valid_and_differ() {
        let (one, two) = (ContainerId::random().unwrap(), ContainerId::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(parse(one.as_str()).unwrap(), one);
    }
}
