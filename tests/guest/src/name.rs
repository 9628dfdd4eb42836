//! Names that no two tests share.

use std::sync::atomic::{AtomicU32, Ordering};

/// A name that nothing else on this machine has. Tests of one file run at the same time in one process, and runc's
/// control groups are named by the container's id alone, whatever its state directory.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
