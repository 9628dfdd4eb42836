//! Container images without an engine: read, checked, unpacked, and kept as layers.
//!
//! ```text
//! Reference ─► Image (source, manifest, configuration) ─► Store::unpack ─► Layers ─► a read-only view, an overlay of a run
//! ```
//!
//! Whoever built an image is not trusted, and all of this runs as root on the host. So every blob is bounded and its digest
//! checked, every archive is read by [`tar`], which holds next to nothing of it in memory, and every name of a layer is
//! resolved below the tree that is being made.

mod digest;
mod image;
mod layer;
mod overlay;
mod reference;
mod store;
mod tar;
mod users;

pub use digest::Digest;
pub use image::{FilesError, Image, ImageConfig, ImageError};
pub use layer::{Budget, LayerError};
pub use reference::{Form, Reference};
pub use store::{DEFAULT_PATH, Layers, Store, StoreError};
pub use users::{User, UserError, find_user};
