//! Descriptors by number.

use std::os::fd::RawFd;

/// True when the process has a descriptor of this number at this moment.
///
/// The kernel hands out the lowest free number, so a high one that is open says that about as many are.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD has no argument and changes nothing, whether the number is a descriptor or not.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::is_open;

    #[test]
    fn open_and_closed_are_told_apart() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(is_open(file.as_raw_fd()));
        assert!(!is_open(1_000_000));
    }
}
