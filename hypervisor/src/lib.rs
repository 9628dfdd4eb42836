//! Virtual machine monitors: what all of them can do, and the drivers.
//!
//! A driver is made with a [`VmConfig`], boots once, and ends once. Its states:
//!
//! ```text
//! new ──boot──► running ◄─pause, resume─► paused
//!  │              │  └──────────┬────────────┘
//!  └──stop──►     └─ stop, or the VM's own end ─► ended (VmEnd, for ever)
//! ```
//!
//! All methods take `&self`: one task may wait for the end while another pauses or stops. What only some can do, as adding a
//! card to a running VM, is the driver's own; the sandbox holds the one driver that there is.

mod accelerator;
mod config;
mod console;
mod elf;
mod end;
pub mod fake;
pub mod jail;
pub mod kvm;
mod machine;
pub mod qemu;
pub mod qmp;
mod tsc;
mod vhost;

use async_trait::async_trait;

pub use accelerator::{Accelerator, AcceleratorChoice, AcceleratorSetting};
pub use config::{Access, Disk, MacAddress, MemoryMib, Nic, Pages, Share, VmConfig, Vsock};
pub use console::{Console, Fatal};
pub use elf::{ElfError, closure as elf_closure};
pub use end::{HypervisorError, VmEnd};
pub use kvm::KvmUnusable;
pub use machine::{MachineChoice, MachineDemand, MachineType};
pub use tsc::TscClock;
pub use vhost::Vhost;

/// A VM of some hypervisor, from before its boot to after its end.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Starts the VM; returns when its devices are there and its processor runs.
    ///
    /// # Errors
    /// [`HypervisorError::State`] when it was booted or stopped before; otherwise why the VMM could not be started,
    /// in its own words where it had some. The VM has then ended.
    async fn boot(&self) -> Result<(), HypervisorError>;

    /// Ends the VM at once, without the guest's help, and waits until it is gone. Idempotent.
    ///
    /// # Errors
    /// When the VMM could not be told.
    async fn stop(&self) -> Result<(), HypervisorError>;

    /// How the VM ended; waits for it. Any number may wait, and any number of times.
    async fn wait(&self) -> VmEnd;

    /// Halts the guest's processors; a paused VM stays paused.
    ///
    /// # Errors
    /// [`HypervisorError::State`] unless it runs.
    async fn pause(&self) -> Result<(), HypervisorError>;

    /// Lets the guest's processors run; a running VM goes on running.
    ///
    /// # Errors
    /// [`HypervisorError::State`] unless it was booted and has not ended.
    async fn resume(&self) -> Result<(), HypervisorError>;

    /// Whether the guest's processors are let run: asked of the VMM, which so shows that it is well itself.
    ///
    /// # Errors
    /// [`HypervisorError::State`] unless it runs or is paused; otherwise when the VMM does not answer soon.
    async fn runs(&self) -> Result<bool, HypervisorError>;

    /// What the guest last wrote to its console, at most 64 KiB.
    fn console_tail(&self) -> String;
}
