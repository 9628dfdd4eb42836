//! How errors are said to an engine.

pub use kata_sys::causes::chain;
