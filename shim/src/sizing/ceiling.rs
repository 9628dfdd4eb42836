//! A VM in a group that has a limit on memory: more than that allows would not be reclaimed, it would end the VM.

use kata_engine_api::handover::FailureKind;
use kata_hypervisor::Accelerator;
use kata_sandbox::{budget, cgroup::MemoryCeiling};

use super::MIB;
use crate::failure::Refusal;

/// The smallest guest that is made, where a group has no room for more.
const LEAST_MIB: u64 = 64;

/// What VMM and proxy take together with a VM.
#[derive(Debug)]
pub struct Ceiling {
    limit: MemoryCeiling,
    accelerator: Accelerator,
}

impl Ceiling {
    /// That of a VM which is run so.
    pub fn new(limit: MemoryCeiling, accelerator: Accelerator) -> Self {
        Self { limit, accelerator }
    }

    /// What they may take.
    pub(super) fn limit_mib(&self) -> u64 {
        self.limit.bytes / MIB
    }

    /// What a VM may have of `wanted`, of which somebody was promised a part.
    pub(super) fn hold(&self, wanted: u64, promised: u64) -> Result<u64, Refusal> {
        // At most, and what is taken by a VM that is up and has nothing to do.
        let (most, least) = (self.beside(), self.beside() / 2);
        let fits = |beside| budget::largest_vm(self.limit_mib(), beside);
        // Without the smallest guest there is nothing.
        let promised = promised.max(LEAST_MIB);
        let memory = wanted.min(fits(most).max(promised.min(fits(least))));
        if memory >= LEAST_MIB {
            return Ok(memory);
        }
        let (file, limit) = (self.limit.file.display(), self.limit_mib());
        let message = format!(
            "{file} allows {limit} MiB, and a VM needs {} MiB there: {LEAST_MIB} for the smallest guest, {least} for VMM and \
             proxy; make the limit larger, in a cluster by limits of the pod's containers or the overhead of its runtime class",
            LEAST_MIB + least + 1
        );
        Err(Refusal::new(FailureKind::InvalidArgument, message))
    }

    /// What `state` says of a VM that has less than was wanted.
    pub(super) fn note(&self, memory: u64, wanted: u64) -> Option<String> {
        let (file, limit) = (self.limit.file.display(), self.limit_mib());
        (memory < wanted).then(|| {
            format!("{memory} MiB, not {wanted}: {file} allows {limit} MiB, for VMM and proxy, too")
        })
    }

    fn beside(&self) -> u64 {
        self.accelerator.overhead().0.into()
    }
}
