//! Waiting for a child process without blocking.

use std::io;

use kata_sys::{
    spawn::{Child, Exit},
    watch::watch,
};
use tokio::io::Interest;

/// How a child ended; waits for it.
///
/// # Errors
/// When its pidfd can't be watched.
pub async fn exit(child: &Child) -> io::Result<Exit> {
    let pidfd = watch(child.pidfd.try_clone()?, Interest::READABLE)?;
    loop {
        let mut ready = pidfd.readable().await?;
        if let Some(exit) = child.try_wait()? {
            return Ok(exit);
        }
        ready.clear_ready();
    }
}

/// A child's pid as a number.
pub fn pid_number(child: &Child) -> u32 {
    child.pid.as_raw_nonzero().get().unsigned_abs()
}
