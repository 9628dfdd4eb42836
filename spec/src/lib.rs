//! The OCI runtime specification as one table: what becomes of each field of `config.json`.
//!
//! ```text
//! config.json ─► table: types, and for each field applied │ translated │ host only │ refused
//!                  └► rules: what a table can't say (paths, mounts, namespaces, devices)
//!                       └► Checked ─┬─► what the host does: root, volumes, network, limits
//!                                   └─► guest_spec(): what the agent applies
//! ```
//!
//! **Invariant**: a field that is set and that nobody would apply is an error that names it. A field that the table does
//! not know is none (the specification forbids that), but is listed by [`Checked::explain`].
//!
//! The document stays JSON until it is checked, for two reasons: an error can name the field instead of a byte, and what
//! is not known is seen instead of dropped.

mod checked;
mod defaults;
mod document;
mod error;
mod features;
mod load;
mod memory;
mod mounts;
mod overlay;
mod process;
mod program;
mod reference;
mod resources;
mod rules;
pub mod table;
mod trees;

pub use checked::{Checked, HostDisk, IdMap, IdRange, Network, Origin, TerminalSize, VolumeSource};
pub use defaults::{DEFAULT_PATH, default_for};
pub use error::{ProgramError, SpecError};
pub use features::features;
pub use load::{Explanation, Neighbours, check, check_beside, explain, read_config};
pub use memory::{Directory, Memory};
pub use mounts::TMPFS_MAGIC;
pub use overlay::{Layers, OverlayError};
pub use process::{CheckedProcess, parse_process};
pub use program::{Program, resolve_program};
pub use reference::reference;
pub use resources::{
    BlockIoLimits, CheckedResources, CpuLimits, DEFAULT_PERIOD_US, HugepageLimit, Limits,
    MemoryLimits, PidsLimit, ThrottleDevice, WeightDevice, check_change, check_resources,
    parse_list,
};
pub use rules::devices::name_disks;
pub use table::Explained;
pub use trees::{Seen, TreeError, Trees};

/// The version of the specification that this follows: what `version`, states and configurations that are made here say.
/// The table knows what 1.3 adds, too, but a `poststart` hook that fails is only warned of, as up to 1.2.
pub const VERSION: &str = "1.2.0";
