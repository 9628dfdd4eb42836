//! `kill`: a signal to the container's own process, or to all.

use super::Context;
use crate::{args::Kill, failure::Failure};

impl Context<'_> {
    pub(super) fn kill(&self, typed: &Kill) -> Result<(), Failure> {
        self.with_shim(&typed.id, async |shim| shim.kill(typed.signal, typed.all).await)
    }
}
