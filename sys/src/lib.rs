//! Safe wrappers over the system calls that neither `std` nor `rustix` offers safely.
//!
//! The only crate with `unsafe`. Each module is one noun; each `unsafe` block proves its invariant.
#![allow(unsafe_code)]

pub mod scm;
pub mod spawn;
