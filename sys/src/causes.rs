//! What has led to an error.

use std::{error, iter::successors};

/// An error and its causes, in one line.
pub fn chain(error: &dyn error::Error) -> String {
    successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("open it")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_follow_what_they_have_caused() {
        let inner = io::Error::other("no such thing");
        assert_eq!(chain(&inner), "no such thing");
        assert_eq!(chain(&Outer(inner)), "open it: no such thing");
    }
}
