//! `kill`: a signal to the container's own process, or to all.

use super::{Context, NOT_RUNNING};
use crate::{args::Kill, failure::Failure, shim_client::is_there, signal::Signal};

impl Context<'_> {
    pub(super) fn kill(&self, typed: &Kill) -> Result<(), Failure> {
        // As runc: that there is no such container is the greater mistake.
        let dir = self.root.open(&typed.id)?;
        let signal: Signal = typed.signal.parse()?;
        if typed.all && !is_there(&dir) {
            // Nothing is left that a signal could be for.
            return Ok(());
        }
        self.with_shim(&typed.id, NOT_RUNNING, async |shim| shim.kill(signal, typed.all).await)
    }
}
