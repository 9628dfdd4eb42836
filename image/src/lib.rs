//! The guest's initrd: the agent as `/init`, an empty tree, and (for a kernel that has them) modules.
//!
//! The archive is a function of its inputs: entries are sorted, owners, times and inode numbers are fixed, and nothing
//! of the machine that builds it gets in. It is not compressed: the agent is small, and under emulation unpacking costs
//! more than reading.

mod cpio;
mod initrd;

pub use initrd::{ImageError, Initrd};
