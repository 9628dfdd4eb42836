//! Descriptors that a process was started with.
//!
//! Everything that Rust opens is close-on-exec, and nothing that was inherited can be: so a descriptor without that
//! flag has no owner yet, and [`take`], which sets the flag, can make one only once. Whoever clears the flag of a
//! descriptor of its own, to hand it down, must not call this module afterwards: it is for the first lines of `main`.

use std::{
    fs, io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// First number behind the standard streams.
const FIRST: RawFd = 3;

/// Makes the caller the owner of the inherited descriptor `number`, and close-on-exec.
///
/// # Errors
/// `InvalidInput` for a standard stream, and for a descriptor that was not inherited or is taken already; `EBADF` when
/// it is not open.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST || !is_inherited(number)? {
        let message = format!("descriptor {number} was not inherited or is taken");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    // SAFETY: `number` is open and lacks FD_CLOEXEC, so it was inherited and nothing in this process owns it yet (see
    // the module's first paragraph).
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Closes every inherited descriptor that was not taken; the standard streams stay.
///
/// # Errors
/// When `/proc/self/fd` can't be read.
pub fn close_rest() -> io::Result<()> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers.into_iter().filter(|number| *number >= FIRST) {
        // Not open any more: the descriptor that listed the directory.
        if is_inherited(number).unwrap_or(false) {
            drop(take(number)?);
        }
    }
    Ok(())
}

fn is_inherited(number: RawFd) -> io::Result<bool> {
    // SAFETY: only asks for the flags of a number, before anything closes it; a closed one gives EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(!fcntl_getfd(fd)?.contains(FdFlags::CLOEXEC))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io,
        os::fd::{AsRawFd, IntoRawFd},
    };

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::take;

    #[test]
    fn a_descriptor_of_our_own_cannot_be_taken() {
        let own = File::open("/dev/null").unwrap();
        assert_eq!(take(own.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_inherited_descriptor_can_be_taken_once() {
        let file = File::open("/dev/null").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.into_raw_fd();
        let taken = take(number).unwrap();
        assert!(fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
        assert_eq!(take(number).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn standard_streams_and_closed_numbers_are_errors() {
        assert!(take(0).is_err());
        assert!(take(1_000_000).is_err());
    }
}
