//! Configuration: defaults, then `/etc/kata/config.toml`, then `/etc/kata/config.d/*.toml` by name, then annotations.
//!
//! No file is needed. Every key is one row of [`KEYS`]: what it is called, what it may be, where it lives in
//! [`Config`], and whether an annotation may set it. The reader, the reference (`docs/config.md`) and
//! `kata-runtime env` all go by that table, so that no key can exist in one of them alone.

mod artefacts;
mod field;
mod file;
mod keys;
mod load;
mod nearest;
mod reference;
mod settings;

pub use artefacts::{Artefact, ArtefactError, Prefix, find_vmm};
pub use field::Field;
pub use keys::{KEYS, Key};
pub use load::{ConfigError, DEFAULT_DIRECTORY, DIRECTORY_VARIABLE, Loaded, Source, directory};
pub use nearest::nearest;
pub use reference::reference;
pub use settings::{
    Accelerator, Boot, Config, Guest, Hypervisor, LogLevel, Machine, NetworkModel, Pages, Runtime,
    UnknownAnnotations, Vm,
};
